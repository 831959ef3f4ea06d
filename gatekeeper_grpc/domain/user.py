"""The stored user, and its document in the audit log."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from gatekeeper_grpc.domain.attribute import JsonValue, canonical, identity, size_bytes
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.etag import etag
from gatekeeper_grpc.domain.limits import MAX_ATTRIBUTES_BYTES, check_user_id, check_visible


@dataclass(frozen=True, slots=True, kw_only=True)
class UserProfile:
    """The fields of a user that an editor decides; `attributes` is a `canonical` copy.

    Raises:
        InvalidArgument: A field is invalid; names it as "user.<name>".
    """

    user_id: str
    attributes: Mapping[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_user_id("user.user_id", self.user_id)
        # The way a frozen dataclass fills its fields.
        object.__setattr__(self, "attributes", checked_attributes("user.attributes", self.attributes))


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A stored user at a revision.

    `subject_id` is the person, who may have targets and memberships without stored attributes. `revision` is the one
    that last changed the attributes. Times are aware, in UTC.
    """

    subject_id: UUID
    profile: UserProfile
    create_time: datetime
    update_time: datetime
    revision: int

    @property
    def user_id(self) -> str:
        """The user's id."""
        return self.profile.user_id

    @property
    def attributes(self) -> Mapping[str, JsonValue]:
        """The stored attributes, by top-level name."""
        return self.profile.attributes

    @property
    def etag(self) -> str:
        """Opaque name of this state of this user."""
        return etag("user", self.subject_id.int, self.revision)


def checked_attributes(field: str, attributes: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a copy of attributes that PostgreSQL can store and that reads back the same.

    Raises:
        InvalidArgument: Over 16 KiB as compact JSON or 5 levels, or with NaN, an infinity, NUL or half a surrogate
            pair; names `field`.
    """
    try:
        kept = canonical(dict(attributes))
    except ValueError as error:
        raise InvalidArgument.of(field, str(error)) from error
    assert isinstance(kept, dict)  # noqa: S101 - as what it is a copy of
    if size_bytes(kept) > MAX_ATTRIBUTES_BYTES:
        raise InvalidArgument.of(field, f"must be at most {MAX_ATTRIBUTES_BYTES // 1024} KiB as JSON")
    return kept


def check_new_attribute_names(names: Iterable[str]) -> None:
    """Check the names of attributes that a user did not have before.

    Raises:
        InvalidArgument: One is not visible, see `check_visible`.
    """
    for name in names:
        check_visible(f"user.attributes[{name!a}]", name)


def changed_attributes(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """Return the names of the attributes that only one of two states has, or that have another JSON value."""
    changed = {name for name in before.keys() & after.keys() if identity(before[name]) != identity(after[name])}
    return tuple(sorted(changed | (before.keys() ^ after.keys())))


def user_document(user: User) -> dict[str, Any]:
    """Return the user as JSON values for the audit log: by subject id, never by user id."""
    return {
        "subject_id": str(user.subject_id),
        "attributes": dict(user.attributes),
        "create_time": user.create_time.isoformat(),
        "update_time": user.update_time.isoformat(),
        "revision": user.revision,
    }
