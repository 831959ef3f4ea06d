"""A configuration to apply: flags and segments with their targets and members, and users, as they should be."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gatekeeper_grpc.domain.errors import GatekeeperError, InvalidArgument
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import ChangeType, ResourceType
from gatekeeper_grpc.domain.segment import SegmentConfig
from gatekeeper_grpc.domain.user import UserProfile

MEMBER = ""
"""The value of a member of a segment: members have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedFlag:
    """A flag as it should be; empty `etag`: in any state of it. `field` is where the request has it."""

    field: str
    config: FlagConfig
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedSegment:
    """A segment as it should be; empty `etag`: in any state of it. `field` is where the request has it."""

    field: str
    config: SegmentConfig
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedUsers:
    """Users who should be targeted with one value, or be members of a segment.

    Args:
        field: Where the request has them.
        key: The key of the flag or segment.
        user_ids: The users, each once.
        variant: The value of targets; `MEMBER` for members.
        removes_others: Whether all others with this value stop being targeted, or being members.
    """

    field: str
    key: str
    user_ids: tuple[str, ...]
    variant: str = MEMBER
    removes_others: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedUser:
    """A stored user as it should be; empty `etag`: in any state of it. `field` is where the request has it."""

    field: str
    profile: UserProfile
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """A flag, segment or user, by its id, that should not exist; empty `etag`: in any state of it."""

    field: str
    key: str
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What flags, segments and stored users should be. Nothing is in it twice; what it does not name stays as it is."""

    flags: Sequence[WantedFlag] = ()
    segments: Sequence[WantedSegment] = ()
    targets: Sequence[WantedUsers] = ()
    members: Sequence[WantedUsers] = ()
    flag_deletions: Sequence[Deletion] = ()
    segment_deletions: Sequence[Deletion] = ()
    users: Sequence[WantedUser] = ()
    user_deletions: Sequence[Deletion] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedChange:
    """What was changed of one resource; `revision` 0: it would be changed. The key of a user is the user id."""

    resource: ResourceType
    key: str
    change: ChangeType
    fields: tuple[str, ...] = ()
    counts: Mapping[str, int]
    """How many users were "added", "moved" and "removed"."""
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What was changed, in the order of revisions, and the id that links the audit entries; neither: nothing."""

    changes: tuple[AppliedChange, ...] = ()
    apply_id: str = ""


@contextmanager
def errors_of(field: str, *, instead_of: str = "") -> Iterator[None]:
    """Have errors that are raised inside say which part of a configuration they are about.

    Args:
        field: Where the request has the part, such as "flags[3]".
        instead_of: What the fields of an `InvalidArgument` begin with instead, such as "flag".
    """
    try:
        yield
    except InvalidArgument as error:
        violation = error.violations[0]
        path = violation.field.removeprefix(instead_of)
        raise InvalidArgument.of(f"{field}{path}", violation.description) from error
    except GatekeeperError as error:
        error.add_metadata(field=field)
        raise
