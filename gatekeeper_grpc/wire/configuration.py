"""Configurations and what they changed, between domain types and messages."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1 import audit_pb2, flag_pb2, segment_pb2, user_pb2
from gatekeeper_grpc.domain.configuration import (
    AppliedChange,
    Configuration,
    Deletion,
    WantedFlag,
    WantedSegment,
    WantedUser,
    WantedUsers,
    errors_of,
)
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import check_count, check_key, check_user_id
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.wire.flags import flag_config_of, flag_field, served_variant
from gatekeeper_grpc.wire.segments import segment_config_of
from gatekeeper_grpc.wire.users import profile_from_proto

MAX_USERS: Final = 10_000
"""How many users one resource may have in a request."""
MAX_ENTRIES: Final = 25_000
"""How many entries each list of a request may have: as many flags as an installation has by default, and some."""
_LISTS: Final = (
    *("flags", "segments", "targets", "members", "users"),
    *("flag_deletions", "segment_deletions", "user_deletions"),
)


def configuration_from_proto(request: pb.ApplyConfigurationRequest) -> Configuration:
    """Convert a configuration.

    Raises:
        InvalidArgument: A field is invalid, a key or a user is named twice, or a list is too long.
    """
    for name in _LISTS:
        check_count(name, getattr(request, name), at_most=MAX_ENTRIES)
    wanted = Configuration(
        flags=[_flag(f"flags[{at}]", flag) for at, flag in enumerate(request.flags)],
        segments=[_segment(f"segments[{at}]", segment) for at, segment in enumerate(request.segments)],
        targets=[_targets(f"targets[{at}]", users) for at, users in enumerate(request.targets)],
        members=[_members(f"members[{at}]", users) for at, users in enumerate(request.members)],
        flag_deletions=_deletions("flag_deletions", request.flag_deletions),
        segment_deletions=_deletions("segment_deletions", request.segment_deletions),
        users=[_user(f"users[{at}]", user) for at, user in enumerate(request.users)],
        user_deletions=_deletions("user_deletions", request.user_deletions, check=check_user_id),
    )
    _check_named_once(wanted)
    return wanted


def _flag(field: str, flag: flag_pb2.Flag) -> WantedFlag:
    with errors_of(field, instead_of="flag"):
        return WantedFlag(field=field, config=flag_config_of(flag), etag=flag.etag)


def _segment(field: str, segment: segment_pb2.Segment) -> WantedSegment:
    with errors_of(field, instead_of="segment"):
        return WantedSegment(field=field, config=segment_config_of(segment), etag=segment.etag)


def _user(field: str, user: user_pb2.User) -> WantedUser:
    with errors_of(field, instead_of="user"):
        return WantedUser(field=field, profile=profile_from_proto(user), etag=user.etag)


def _targets(field: str, users: pb.ConfiguredTargets) -> WantedUsers:
    check_key(f"{field}.flag_key", users.flag_key)
    variant = served_variant(users, f"{field}.")
    return _users(field, users.flag_key, users, variant=variant)


def _members(field: str, users: pb.ConfiguredMembers) -> WantedUsers:
    check_key(f"{field}.segment_key", users.segment_key)
    return _users(field, users.segment_key, users)


def _users(field: str, key: str, users: pb.ConfiguredTargets | pb.ConfiguredMembers, **variant: str) -> WantedUsers:
    check_count(f"{field}.user_ids", users.user_ids, at_most=MAX_USERS)
    for position, user_id in enumerate(users.user_ids):
        check_user_id(f"{field}.user_ids[{position}]", user_id)
    return WantedUsers(
        field=field, key=key, user_ids=tuple(users.user_ids), removes_others=users.remove_others, **variant
    )


def _deletions(
    field: str, deletions: Iterable[pb.ConfigurationDeletion], *, check: Callable[[str, str], None] = check_key
) -> list[Deletion]:
    found = [Deletion(field=f"{field}[{at}]", key=one.key, etag=one.etag) for at, one in enumerate(deletions)]
    for deletion in found:
        check(f"{deletion.field}.key", deletion.key)
    return found


def _check_named_once(wanted: Configuration) -> None:
    flags = [(f"{one.field}.key", one.config.key) for one in wanted.flags]
    segments = [(f"{one.field}.key", one.config.key) for one in wanted.segments]
    _check_once([*flags, *((f"{one.field}.key", one.key) for one in wanted.flag_deletions)])
    _check_once([*segments, *((f"{one.field}.key", one.key) for one in wanted.segment_deletions)])
    users = [(f"{one.field}.user_id", one.profile.user_id) for one in wanted.users]
    _check_once([*users, *((f"{one.field}.key", one.key) for one in wanted.user_deletions)])
    _check_once([(f"{one.field}.flag_key", f"{one.key} {one.variant}") for one in wanted.targets])
    _check_once([(f"{one.field}.segment_key", one.key) for one in wanted.members])
    _check_users(wanted.targets)
    _check_users(wanted.members)


def _check_once(named: Iterable[tuple[str, str]]) -> None:
    seen: set[str] = set()
    for field, name in named:
        if name in seen:
            raise InvalidArgument.of(field, "is named before; each may be named once")
        seen.add(name)


def _check_users(lists: Sequence[WantedUsers]) -> None:
    """Check that no user is named twice for one flag or segment, and that it has no more users than it may."""
    counts: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for users in lists:
        counts[users.key] += len(users.user_ids)
        if counts[users.key] > MAX_USERS:
            raise InvalidArgument.of(
                f"{users.field}.user_ids", f"must have at most {MAX_USERS} users with the other value: import more"
            )
        for position, user_id in enumerate(users.user_ids):
            if (users.key, user_id) in seen:
                raise InvalidArgument.of(f"{users.field}.user_ids[{position}]", "is named before, for the same key")
            seen.add((users.key, user_id))


def applied_change_to_proto(change: AppliedChange) -> pb.ConfigurationChange:
    """Convert a change that was made, or would be made."""
    name_of = flag_field if change.resource is ResourceType.FLAG else str
    return pb.ConfigurationChange(
        resource_type=audit_pb2.ResourceType.Value(f"RESOURCE_TYPE_{change.resource.name}"),
        key=change.key,
        change_type=pb.ConfigurationChangeType.Value(f"CONFIGURATION_CHANGE_TYPE_{change.change.name}"),
        fields=map(name_of, change.fields),
        revision=change.revision,
        **{f"{what}_count": count for what, count in change.counts.items()},
    )
