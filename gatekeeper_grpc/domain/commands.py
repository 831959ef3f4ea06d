"""What admin callers ask for: commands that `wire` makes and the store carries out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.caller import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagUpdate:
    """Changes some fields of a flag's `FlagConfig`; `etag` empty: whatever state the flag is in."""

    key: str
    changes: Mapping[str, Any]
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagFilter:
    """Which flags to list: the first `limit` by key, after `after`, that pass every filter given."""

    limit: int
    after: str = ""
    key_prefix: str = ""
    tags: tuple[str, ...] = ()
    owner: str = ""
    enabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEdit:
    """Targets users of a flag with `variant`, or stops targeting them when it is None."""

    flag_key: str
    user_ids: tuple[str, ...]
    variant: str | None
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEditResult:
    """How many users were not targeted before, had another variant, are targeted no more."""

    added_count: int = 0
    moved_count: int = 0
    removed_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentUpdate:
    """Changes some fields of a segment's `SegmentConfig`; `etag` empty: whatever state the segment is in."""

    key: str
    changes: Mapping[str, Any]
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFilter:
    """Which segments to list: the first `limit` by key, after `after`, that pass every filter given."""

    limit: int
    after: str = ""
    key_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEdit:
    """Names users who shall be members of a segment, or shall be no more."""

    segment_key: str
    user_ids: tuple[str, ...]
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserUpdate:
    """Changes attributes of a known user; `etag` empty: whatever state the user is in.

    Args:
        user_id: Whose.
        attributes: What they shall be.
        names: Only the attributes with these names change, and those that `attributes` lacks are removed; None: all.
        etag: Which state of the user the caller has seen.
    """

    user_id: str
    attributes: Mapping[str, JsonValue]
    names: frozenset[str] | None = None
    etag: str = ""

    def applied_to(self, stored: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
        """Return what stored attributes become."""
        if self.names is None:
            return self.attributes
        kept = {name: value for name, value in stored.items() if name not in self.names}
        return kept | {name: value for name, value in self.attributes.items() if name in self.names}


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFilter:
    """Which users to list: the first `limit` by id, after `after`, that pass every filter given.

    `attributes` asks for users who have all of them, each with an equal value.
    """

    limit: int
    after: str = ""
    user_id_prefix: str = ""
    attributes: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAdminUser:
    """Makes somebody an admin user. The password goes beside it, as a hash."""

    username: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminUserUpdate:
    """Changes an admin user's `role` or `enabled`; `etag` empty: whatever state it is in.

    A new password goes beside it, as a hash.
    """

    username: str
    changes: Mapping[str, Any]
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordChange:
    """Changes the password of the admin user who asks.

    Args:
        admin_id: Who it is.
        verified_hash: The hash that the current password, as given, was found to match; None: it matched none.
        new_hash: The hash of the new password.
    """

    admin_id: int
    verified_hash: str | None = field(repr=False)
    new_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthEventFilter:
    """Which events of logging in to list: the newest `limit` before `before` (None: of all) that pass every filter."""

    limit: int
    before: int | None = None
    username: str = ""
    event: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which audit entries to list: the newest `limit` before the entry `before`, that pass every filter given.

    Times: from `start_time` on, and before `end_time`. Revisions: both ends included. `resource_key` needs
    `resource_type`.
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
