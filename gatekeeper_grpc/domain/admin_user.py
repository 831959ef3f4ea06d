"""Admin users, and the events of their authentication."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.etag import etag
from gatekeeper_grpc.domain.limits import MAX_USERNAME_CHARS, check_text

FIRST_ADMIN: Final = "admin"
"""The name of the admin user that the first start creates, with role admin."""

_NEW_USERNAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminUser:
    """An admin user at a revision, without its password and the hash of it.

    `admin_id` is its identity: one that is created again under a deleted name is another. 0: it is not stored, and has
    no etag. No mutation created the first admin user: its revision is 0 until its first change. Times are aware, in
    UTC.
    """

    admin_id: int
    username: str
    role: Role
    enabled: bool
    create_time: datetime
    update_time: datetime
    revision: int
    must_change_password: bool = False
    """Whether it has to change its password before it can log in."""

    @property
    def etag(self) -> str:
        """Opaque name of this state of this admin user."""
        return etag("admin_user", self.admin_id, self.revision) if self.admin_id else ""

    @property
    def can_manage(self) -> bool:
        """Whether it may manage admin users; at least one always may."""
        return self.enabled and self.role is Role.ADMIN


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthEventEntry:
    """One authentication event, or read of personal data: what happened, under which name, and from which peer."""

    event_id: int
    create_time: datetime
    event: str
    username: str
    peer: str
    actor: str
    """Who ended the session of the admin user, if it was another one; who read personal data."""
    subject_ids: Sequence[UUID]
    """The first of the people whose data was read."""
    subject_count: int
    """How many these are in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A login that has not ended: whose, since when, when its tokens were last exchanged, from where, until when."""

    session_id: UUID
    username: str
    create_time: datetime
    refresh_time: datetime
    expire_time: datetime
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a login is checked against.

    Args:
        admin_id: The enabled admin user with the name that was typed; None: there is none.
        password_hash: Its password hash; None: there is none.
        highest_cost: The highest bcrypt cost of the password of any enabled admin user.
    """

    admin_id: int | None
    password_hash: str | None = field(repr=False)
    highest_cost: int


SESSION_MAX_AGE = timedelta(days=90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A refresh token, and what it is to be exchanged for.

    Args:
        token: The refresh token.
        successor: The one that replaces it.
        nonce: What the successor was derived from the token with.
        expire_time: When the successor expires, unless its session ends earlier.
        session_max_age: How long after its login a session ends.
        address: The address of the client, without a port.
        arrived_at: When the call arrived, in monotonic seconds.
    """

    token: str = field(repr=False)
    successor: str = field(repr=False)
    nonce: bytes = field(repr=False)
    expire_time: datetime
    session_max_age: timedelta = SESSION_MAX_AGE
    address: str = ""
    arrived_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """The owner and session of a refresh token, the nonce from which its successor is derived, and its expiry."""

    caller: Caller
    nonce: bytes = field(repr=False)
    expire_time: datetime


def check_new_username(field: str, username: str) -> None:
    """Check the name of an admin user that is being created.

    Raises:
        InvalidArgument: It is not 1 to 64 characters of a-z 0-9 . _ @ - that start with a letter or digit.
    """
    if not _NEW_USERNAME.fullmatch(username):
        raise InvalidArgument.of(
            field, "must be 1 to 64 characters of a-z 0-9 . _ @ - and start with a letter or digit"
        )


def check_username(field: str, username: str) -> None:
    """Check a name that may be the one of a stored admin user: earlier releases accepted other characters.

    Raises:
        InvalidArgument: It is not 1 to 128 characters without NUL.
    """
    check_text(field, username, at_least=1, at_most=MAX_USERNAME_CHARS)


def admin_user_document(user: AdminUser) -> dict[str, Any]:
    """Return an admin user as JSON values, for the audit log."""
    # Only if it is set: documents of earlier releases lack it.
    required = {"must_change_password": True} if user.must_change_password else {}
    return {
        **required,
        "admin_id": user.admin_id,
        "username": user.username,
        "role": user.role.name.lower(),
        "enabled": user.enabled,
        "create_time": user.create_time.isoformat(),
        "update_time": user.update_time.isoformat(),
        "revision": user.revision,
    }
