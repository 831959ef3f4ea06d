"""Commands of admin callers: `wire` makes them from requests, the store carries them out."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.flag import FlagConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagUpdate:
    """Changes some fields of the `FlagConfig` of a flag; empty `etag`: in any state of the flag."""

    key: str
    changes: Mapping[str, Any]
    etag: str = ""

    def applied_to(self, before: FlagConfig) -> FlagConfig:
        """Return what the flag is after the update.

        Raises:
            InvalidArgument: A field is invalid.
        """
        after = replace(before, **self.changes)
        after.check_new_names(before=before)
        return after


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagFilter:
    """Which flags to list: the first `limit` by key after `after` that match every filter."""

    limit: int
    after: str = ""
    key_prefix: str = ""
    tags: tuple[str, ...] = ()
    owner: str = ""
    enabled: bool | None = None
    stale_for: timedelta | None = None
    """Only flags that are older than this and that no evaluation has named in this time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRange:
    """Which part of the usage of a flag: hours or days that end after `start_time` and begin before `end_time`.

    None: from the first, to the last.
    """

    by_day: bool
    start_time: datetime | None = None
    end_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEdit:
    """Targets users of a flag with `variant`, or removes their targets when it is None."""

    flag_key: str
    user_ids: tuple[str, ...]
    variant: str | None
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEditResult:
    """How many users were targeted for the first time, got another variant, or lost their target."""

    added_count: int = 0
    moved_count: int = 0
    removed_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentUpdate:
    """Changes some fields of the `SegmentConfig` of a segment; empty `etag`: in any state of the segment."""

    key: str
    changes: Mapping[str, Any]
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFilter:
    """Which segments to list: the first `limit` by key after `after` that match every filter."""

    limit: int
    after: str = ""
    key_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEdit:
    """Users to add to the members of a segment, or to remove from them."""

    segment_key: str
    user_ids: tuple[str, ...]
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserUpdate:
    """Changes attributes of a known user; empty `etag`: in any state of the user.

    Args:
        user_id: The user.
        attributes: The new values.
        names: Only the attributes with these names change, and those that `attributes` lacks are removed; None: all.
        etag: The state of the user that the caller has read.
    """

    user_id: str
    attributes: Mapping[str, JsonValue]
    names: frozenset[str] | None = None
    etag: str = ""

    def applied_to(self, stored: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        """Return the stored attributes after the update."""
        if self.names is None:
            return self.attributes
        kept = {name: value for name, value in stored.items() if name not in self.names}
        return kept | {name: value for name, value in self.attributes.items() if name in self.names}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFilter:
    """Which users to list: the first `limit` by id after `after` that match every filter.

    A user matches `attributes` with an equal value for each of them.
    """

    limit: int
    after: str = ""
    user_id_prefix: str = ""
    attributes: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAdminUser:
    """Creates an admin user. The store takes the hash of the password as an argument of its own."""

    username: str
    role: Role
    must_change_password: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminUserUpdate:
    """Changes `role`, `enabled` or `must_change_password` of an admin user; empty `etag`: in any state of it.

    The store takes the hash of a new password as an argument of its own.
    """

    username: str
    changes: Mapping[str, Any]
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordChange:
    """Changes the password of the caller.

    Args:
        admin_id: The caller.
        verified_hash: The hash that the given current password matches; None: it matches none.
        new_hash: The hash of the new password.
    """

    admin_id: int
    verified_hash: str | None = field(repr=False)
    new_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthEventFilter:
    """Which authentication events to list: the newest `limit` before `before` (None: of all) that match all filters."""

    limit: int
    before: int | None = None
    username: str = ""
    event: str = ""
    user_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialFilter:
    """Which sessions or API tokens to list: the first `limit` by id after `after` that match every filter."""

    limit: int
    after: str = ""
    admin_id: int | None = None
    username: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which audit entries to list: the newest `limit` before the entry `before` that match every filter.

    Times: from `start_time`, before `end_time`. Revisions: both ends included. `resource_key` needs `resource_type`.
    """

    limit: int
    before: int | None = None
    actor: str = ""
    action: str = ""
    resource_type: str = ""
    resource_key: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    start_revision: int | None = None
    end_revision: int | None = None
