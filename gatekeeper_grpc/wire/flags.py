"""Flags and targets, between domain types and messages."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_grpc.domain.commands import FlagFilter, FlagUpdate, TargetEdit
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.flag import OFF, ON, Flag, FlagConfig, SegmentTarget, Target
from gatekeeper_grpc.domain.limits import (
    MAX_IDS_PER_STREAM_MESSAGE,
    MAX_TARGETS_PER_CALL,
    check_distinct,
    check_each_visible,
    check_key,
    check_text,
    check_user_ids,
)
from gatekeeper_grpc.wire.masks import changes_from_mask
from gatekeeper_grpc.wire.timestamps import time_to_proto

# Instances need up to an hour to write what they have counted, if thousands of flags are in use.
_LEAST_STALE_S: Final = 3_600
_MOST_STALE_S: Final = 10 * 366 * 86_400


def variant_of(*, value: bool) -> str:
    """Return the variant of a boolean value."""
    return ON if value else OFF


class Served(Protocol):
    """What a message has that says what users get."""

    value: bool
    variant: str

    def WhichOneof(self, oneof_group: Literal["served"]) -> Literal["value", "variant"] | None:  # noqa: D102, N802
        ...


def served_variant(message: Served, field: str = "") -> str:
    """Return the variant that users get by a message, which names it as a value or as a variant.

    Args:
        message: The message.
        field: The path of the message, with a dot at its end; empty: the request itself.

    Raises:
        InvalidArgument: It names none, or one that a boolean flag does not have.
    """
    match message.WhichOneof("served"):
        case "value":
            return variant_of(value=message.value)
        case "variant" if message.variant in (ON, OFF):
            return message.variant
        case "variant":
            raise InvalidArgument.of(f"{field}variant", f'must be "{ON}" or "{OFF}"')
        case _:
            raise InvalidArgument.of(f"{field}value", f'must be set, or variant to "{ON}" or "{OFF}"')


def flag_to_proto(flag: Flag) -> flag_pb2.Flag:
    """Convert a flag; one that is not stored (revision 0) has no etag."""
    config = flag.config
    return flag_pb2.Flag(
        key=config.key,
        default_value=config.default_variant == ON,
        segment_targets=[
            flag_pb2.SegmentTarget(segment_key=target.segment_key, value=target.variant == ON)
            for target in config.segment_targets
        ],
        create_time=time_to_proto(flag.create_time),
        update_time=time_to_proto(flag.update_time),
        tags=config.tags,
        etag=flag.etag if flag.revision else "",
        revision=flag.revision,
        **{field: getattr(config, field) for field in _PLAIN_FIELDS},
    )


def flag_config_from_proto(request: admin.CreateFlagRequest) -> FlagConfig:
    """Convert a new flag; fields that the server decides are ignored.

    Raises:
        InvalidArgument: A field is invalid.
    """
    config = flag_config_of(request.flag)
    config.check_new_names()
    return config


def flag_config_of(flag: flag_pb2.Flag) -> FlagConfig:
    """Convert what an editor decides of a flag, but for a check of new names; see `FlagConfig.check_new_names`.

    Raises:
        InvalidArgument: A field is invalid; names it as "flag.<name>".
    """
    return FlagConfig(key=flag.key, **_by_domain_name({path: read(flag) for path, read in _READERS.items()}))


def flag_update_from_proto(request: admin.UpdateFlagRequest | admin.PreviewFlagChangeRequest) -> FlagUpdate:
    """Convert an update, which may be one to preview.

    Raises:
        InvalidArgument: As `changes_from_mask`, or the key is invalid.
    """
    changes = changes_from_mask(request.update_mask, request.flag, _READERS)
    check_key("flag.key", request.flag.key)
    return FlagUpdate(key=request.flag.key, etag=request.flag.etag, changes=_by_domain_name(changes))


def _by_domain_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_DOMAIN_NAMES.get(path, path): value for path, value in values.items()}


def _segment_targets(flag: flag_pb2.Flag) -> tuple[SegmentTarget, ...]:
    return tuple(
        SegmentTarget(
            segment_key=target.segment_key, variant=served_variant(target, f"flag.segment_targets[{position}].")
        )
        for position, target in enumerate(flag.segment_targets)
    )


# Fields that an editor decides and that message and domain share by name and type: a new one of this kind is added here
# alone. The others have a reader below and a line in `flag_to_proto`.
_PLAIN_FIELDS: Final = ("description", "enabled", "rollout_percentage", "owner")
_READERS: Mapping[str, Callable[[flag_pb2.Flag], Any]] = MappingProxyType(
    {field: attrgetter(field) for field in _PLAIN_FIELDS}
    | {
        "default_value": lambda flag: variant_of(value=flag.default_value),
        "segment_targets": _segment_targets,
        "tags": lambda flag: tuple(flag.tags),
    }
)
_DOMAIN_NAMES: Mapping[str, str] = MappingProxyType({"default_value": "default_variant"})


def flag_filter_from_proto(request: admin.ListFlagsRequest, *, after: str, limit: int) -> FlagFilter:
    """Convert the filters of a list.

    Raises:
        InvalidArgument: A filter is too long or out of range, or a tag is empty or repeated.
    """
    check_text("key_prefix", request.key_prefix, at_most=128)
    check_text("owner", request.owner, at_most=256)
    for position, tag in enumerate(request.tags):
        check_text(f"tags[{position}]", tag, at_least=1, at_most=64)
    check_distinct("tags", request.tags)
    return FlagFilter(
        after=after,
        limit=limit,
        key_prefix=request.key_prefix,
        tags=tuple(request.tags),
        owner=request.owner,
        enabled=request.enabled if request.HasField("enabled") else None,
        stale_for=_stale_for(request),
    )


def _stale_for(request: admin.ListFlagsRequest) -> timedelta | None:
    if not request.HasField("stale_for"):
        return None
    seconds = request.stale_for.seconds
    if not _LEAST_STALE_S <= seconds <= _MOST_STALE_S:
        raise InvalidArgument.of("stale_for", "must be 1 hour to 10 years")
    return timedelta(seconds=seconds)


def target_to_proto(target: Target) -> flag_pb2.Target:
    """Convert a target."""
    return flag_pb2.Target(user_id=target.user_id, value=target.variant == ON)


def targets_from_proto(request: admin.AddTargetsRequest | admin.ImportTargetsRequest) -> TargetEdit:
    """Convert users to target.

    Raises:
        InvalidArgument: The key, a user id, the value or the variant is invalid, or there are too many users.
    """
    streamed = isinstance(request, admin.ImportTargetsRequest)
    edit = _target_edit(request, at_most=MAX_IDS_PER_STREAM_MESSAGE if streamed else MAX_TARGETS_PER_CALL)
    check_each_visible("user_ids", edit.user_ids)
    return replace(edit, variant=served_variant(request))


def targets_removal_from_proto(request: admin.RemoveTargetsRequest) -> TargetEdit:
    """Convert users to remove from the targets.

    Raises:
        InvalidArgument: The key or a user id is invalid, or there are too many.
    """
    return _target_edit(request, at_most=MAX_TARGETS_PER_CALL)


def _target_edit(
    request: admin.AddTargetsRequest | admin.ImportTargetsRequest | admin.RemoveTargetsRequest,
    *,
    at_most: int,
) -> TargetEdit:
    """Convert whom an edit is about, without a variant."""
    check_key("flag_key", request.flag_key)
    check_user_ids("user_ids", request.user_ids, at_most=at_most)
    return TargetEdit(flag_key=request.flag_key, user_ids=tuple(request.user_ids), variant=None, etag=request.etag)


def flag_field(name: str) -> str:
    """Return what messages call a field of `FlagConfig`."""
    return next((path for path, domain_name in _DOMAIN_NAMES.items() if domain_name == name), name)
