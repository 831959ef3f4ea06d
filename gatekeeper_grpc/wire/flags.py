"""Flags and targets, between domain types and messages."""

from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper.v1 import admin_service_pb2 as admin
from gatekeeper.v1 import flag_pb2
from gatekeeper_grpc.domain.commands import FlagFilter, FlagUpdate, TargetEdit
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.flag import OFF, ON, Flag, FlagConfig, SegmentTarget, Target
from gatekeeper_grpc.domain.limits import (
    MAX_IDS_PER_STREAM_MESSAGE,
    MAX_TARGETS_PER_CALL,
    check_distinct,
    check_key,
    check_text,
    check_user_ids,
)


def variant_of(*, value: bool) -> str:
    """Return the name of the variant that stands for a boolean value."""
    return ON if value else OFF


def timestamp(time: datetime) -> Timestamp:
    """Convert an aware time to a message."""
    message = Timestamp()
    message.FromDatetime(time)
    return message


def flag_to_proto(flag: Flag) -> flag_pb2.Flag:
    """Convert a flag. One that was not written (revision 0) has no etag."""
    config = flag.config
    return flag_pb2.Flag(
        key=config.key,
        description=config.description,
        enabled=config.enabled,
        default_value=config.default_variant == ON,
        rollout_percentage=config.rollout_percentage,
        segment_targets=[
            flag_pb2.SegmentTarget(segment_key=target.segment_key, value=target.variant == ON)
            for target in config.segment_targets
        ],
        tags=config.tags,
        owner=config.owner,
        create_time=timestamp(flag.create_time),
        update_time=timestamp(flag.update_time),
        etag=flag.etag if flag.revision else "",
        revision=flag.revision,
    )


def flag_config_from_proto(request: admin.CreateFlagRequest) -> FlagConfig:
    """Convert what an editor decides about a new flag; what the server decides is ignored."""
    return FlagConfig(key=request.flag.key, **{field: read(request.flag) for field, read in _CONFIG_FIELDS.values()})


def flag_update_from_proto(request: admin.UpdateFlagRequest) -> FlagUpdate:
    """Convert an update; `InvalidArgument` names the mask's path that cannot be updated."""
    if not request.update_mask.paths:
        raise InvalidArgument.of("update_mask", f"must name at least one of {', '.join(_CONFIG_FIELDS)}")
    check_key("flag.key", request.flag.key)
    changes: dict[str, Any] = {}
    for position, path in enumerate(request.update_mask.paths):
        if path not in _CONFIG_FIELDS:
            raise InvalidArgument.of(
                f"update_mask.paths[{position}]",
                f"is {path!r}, which cannot be updated; use {', '.join(_CONFIG_FIELDS)}",
            )
        field, read = _CONFIG_FIELDS[path]
        changes[field] = read(request.flag)
    return FlagUpdate(key=request.flag.key, etag=request.flag.etag, changes=changes)


def _segment_targets(flag: flag_pb2.Flag) -> tuple[SegmentTarget, ...]:
    return tuple(
        SegmentTarget(segment_key=target.segment_key, variant=variant_of(value=target.value))
        for target in flag.segment_targets
    )


# What an editor decides, by its path in the message: the domain's field, and how to read it.
_CONFIG_FIELDS: Mapping[str, tuple[str, Callable[[flag_pb2.Flag], Any]]] = MappingProxyType(
    {
        "description": ("description", lambda flag: flag.description),
        "enabled": ("enabled", lambda flag: flag.enabled),
        "default_value": ("default_variant", lambda flag: variant_of(value=flag.default_value)),
        "rollout_percentage": ("rollout_percentage", lambda flag: flag.rollout_percentage),
        "segment_targets": ("segment_targets", _segment_targets),
        "tags": ("tags", lambda flag: tuple(flag.tags)),
        "owner": ("owner", lambda flag: flag.owner),
    }
)


def flag_filter_from_proto(request: admin.ListFlagsRequest, *, after: str, limit: int) -> FlagFilter:
    """Convert the filters of a listing."""
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
    )


def target_to_proto(target: Target) -> flag_pb2.Target:
    """Convert a target."""
    return flag_pb2.Target(user_id=target.user_id, value=target.variant == ON)


def targets_from_proto(request: admin.AddTargetsRequest | admin.ImportTargetsRequest) -> TargetEdit:
    """Convert users to be targeted."""
    streamed = isinstance(request, admin.ImportTargetsRequest)
    return _target_edit(
        request,
        variant=variant_of(value=request.value),
        at_most=MAX_IDS_PER_STREAM_MESSAGE if streamed else MAX_TARGETS_PER_CALL,
    )


def targets_removal_from_proto(request: admin.RemoveTargetsRequest) -> TargetEdit:
    """Convert users to be targeted no more."""
    return _target_edit(request, variant=None, at_most=MAX_TARGETS_PER_CALL)


def _target_edit(
    request: admin.AddTargetsRequest | admin.ImportTargetsRequest | admin.RemoveTargetsRequest,
    *,
    variant: str | None,
    at_most: int,
) -> TargetEdit:
    check_key("flag_key", request.flag_key)
    check_user_ids("user_ids", request.user_ids, at_most=at_most)
    return TargetEdit(flag_key=request.flag_key, user_ids=tuple(request.user_ids), variant=variant, etag=request.etag)
