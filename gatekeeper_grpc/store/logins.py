"""Logins in PostgreSQL: passwords, refresh tokens, and authentication events.

All refresh tokens that descend from one login are a family. A token is good for one exchange. A spent token that comes
back shows that two parties hold it, so its family is revoked. Spent tokens are kept until they expire, to be
recognised. The database holds only the SHA-256 of refresh tokens.

Every transaction that changes tokens first locks the row of the admin user that owns them; so does one that changes a
password or disables a user, because it updates that row. A family thus never gains a token while it is being revoked.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, LiteralString
from uuid import uuid4

from psycopg.rows import class_row, kwargs_row

from gatekeeper_grpc.domain.admin_user import AuthEventEntry, Credentials, check_new_username
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.commands import AuthEventFilter
from gatekeeper_grpc.domain.current_call import detached
from gatekeeper_grpc.domain.errors import Unauthenticated
from gatekeeper_grpc.store.postgres.database import Connection, Database, one
from gatekeeper_grpc.store.postgres.retries import retry_conflicts, retry_lost_read

MAX_EVENT_TEXT_CHARS = 128
EVENT_AGE = timedelta(days=90)
MAX_EVENTS = 100_000


class AuthEvent(StrEnum):
    """The kinds of rows in `auth_events`."""

    FIRST_ADMIN_CREATED = "first_admin_created"
    """The first start made an admin user."""
    LOGIN_SUCCEEDED = "login_succeeded"
    """Username and password were right; a family began."""
    LOGIN_FAILED = "login_failed"
    """The password was wrong, or there is no enabled admin user of that name; recorded as it was typed."""
    PASSWORD_CHANGE_FAILED = "password_change_failed"  # noqa: S105 - an event's name
    """A caller with a valid access token gave a wrong current password."""
    LOCKED_OUT = "locked_out"
    """The peer reached the limit of failures: it must wait before its next attempt."""
    REFRESH_REUSED = "refresh_reused"
    """A spent refresh token was presented: it was stolen, or a response was lost. Its family was revoked."""
    LOGGED_OUT = "logged_out"
    """The holder revoked the family."""
    USER_EXPORTED = "user_exported"
    """An admin user exported what is held about a person; recorded before anything is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The numbers of deleted rows."""

    events: int
    refresh_tokens: int


class LoginStore:
    """Password hashes, refresh tokens and authentication events of admin users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_lost_read
    def credentials(self, username: str) -> Credentials:
        """Return what a login under a name is checked against: the enabled admin user, if there is one of that name."""
        # PostgreSQL would refuse to compare a NUL. No admin user has the empty name.
        name = "" if "\0" in username else username
        with self._database.read() as conn:
            admin_id, password_hash = conn.execute(_FIND_CREDENTIALS, {"username": name}).fetchone() or (None, None)
            (highest_cost,) = one(conn.execute(_HIGHEST_COST))
        return Credentials(admin_id=admin_id, password_hash=password_hash, highest_cost=highest_cost)

    @retry_conflicts
    def begin(
        self,
        username: str,
        *,
        password_hash: str,
        new_hash: str | None = None,
        refresh_token: str,
        expire_time: datetime,
        peer: str = "",
    ) -> Caller:
        """Create a family with its first refresh token, and record the login.

        Args:
            username: The admin user.
            password_hash: The hash that the password was checked against; it may have changed during the check.
            new_hash: Replaces that hash, which is of the same password; None: it stays.
            refresh_token: The secret; its hash is stored.
            expire_time: The token's expiry.
            peer: The address of the client, for the record.

        Raises:
            Unauthenticated: No enabled admin user has that name and hash any more.
        """
        with self._database.write() as conn:
            owner = _lock_owner(conn, _OWNER_BY_CREDENTIALS, {"username": username, "password_hash": password_hash})
            if owner is None:
                raise Unauthenticated.credentials()
            if new_hash is not None:
                conn.execute(_REHASH, {"admin_id": owner.admin_id, "new_hash": new_hash})
            family = {"family_id": uuid4(), "admin_id": owner.admin_id}
            conn.execute(_BEGIN, {**family, "token_hash": _sha256(refresh_token), "expire_time": expire_time})
            _record(conn, AuthEvent.LOGIN_SUCCEEDED, username=owner.username, peer=peer)
        return owner

    @retry_conflicts
    def redeem(self, refresh_token: str, *, successor: str, expire_time: datetime, peer: str = "") -> Caller:
        """Exchange a refresh token for its successor, and return its owner with the current role and token epoch.

        Of several callers with one token, the first gets a successor, and the next revokes the whole family.

        Raises:
            Unauthenticated: The token is unknown, spent, revoked or expired, or its owner is disabled.
        """
        token = {"token_hash": _sha256(refresh_token)}
        with self._database.write() as conn:
            owner = _lock_owner(conn, _OWNER_OF_FAMILY, token)
            exchange = {**token, "successor_hash": _sha256(successor), "expire_time": expire_time}
            if owner and conn.execute(_EXCHANGE, exchange).rowcount:
                return owner
            if owner and conn.execute(_REVOKE_IF_SPENT, token).rowcount:
                _record(conn, AuthEvent.REFRESH_REUSED, username=owner.username, peer=peer)
        # Not inside the transaction: the error would roll the revocation back.
        raise Unauthenticated.credentials()

    @retry_conflicts
    def revoke(self, refresh_token: str, *, peer: str = "") -> None:
        """Delete the family of a refresh token, spent or not, and record the logout; no-op without a family."""
        token = {"token_hash": _sha256(refresh_token)}
        with self._database.write() as conn:
            owner = _lock_owner(conn, _OWNER_OF_FAMILY, token)
            if owner and conn.execute(_REVOKE, token).rowcount:
                _record(conn, AuthEvent.LOGGED_OUT, username=owner.username, peer=peer)

    def record_failure(self, username: str, *, peer: str = "", locked_out: bool = False) -> None:
        """Record a failed login under the typed name: its first 128 characters, without NUL."""
        self._record_failure(AuthEvent.LOGIN_FAILED, username, peer=peer, locked_out=locked_out)

    def record_failed_change(self, username: str, *, peer: str = "", locked_out: bool = False) -> None:
        """Record that a logged-in caller gave a wrong current password."""
        self._record_failure(AuthEvent.PASSWORD_CHANGE_FAILED, username, peer=peer, locked_out=locked_out)

    @retry_conflicts
    def _record_failure(self, event: AuthEvent, username: str, *, peer: str, locked_out: bool) -> None:
        # Who hangs up early must not fail unrecorded.
        with detached(), self._database.write() as conn:
            _record(conn, event, username=username, peer=peer)
            if locked_out:
                _record(conn, AuthEvent.LOCKED_OUT, username=username, peer=peer)

    @retry_lost_read
    def list_events(self, wanted: AuthEventFilter) -> list[AuthEventEntry]:
        """Read a page of events, newest first."""
        filters = {
            "before": wanted.before,
            "username": wanted.username or None,
            "event": wanted.event or None,
            "limit": wanted.limit,
        }
        with self._database.read() as conn, conn.cursor(row_factory=class_row(AuthEventEntry)) as cursor:
            return cursor.execute(LIST_EVENTS, filters).fetchall()

    @retry_lost_read
    def has_admin(self) -> bool:
        """Return whether there is any admin user, so that no password needs to be hashed for `ensure_first_admin`."""
        with self._database.read() as conn:
            return conn.execute(_ANY_ADMIN).fetchone() is not None

    @retry_conflicts
    def ensure_first_admin(self, username: str, password_hash: str) -> bool:
        """Create an enabled admin user with role admin if there is no admin user; of several instances one does.

        Args:
            username: See `check_new_username`.
            password_hash: A hash made by `Passwords.hash`.

        Returns:
            Whether this call created it, with this password.

        Raises:
            InvalidArgument: The name is invalid.
        """
        check_new_username("username", username)
        with self._database.write() as conn:
            # Waits for the commit of another instance, which the next statement then sees. Reads and logins continue.
            conn.execute("LOCK TABLE admin_user IN SHARE ROW EXCLUSIVE MODE")
            first = {"username": username, "password_hash": password_hash}
            created = conn.execute(_CREATE_FIRST_ADMIN, first).rowcount == 1
            if created:
                _record(conn, AuthEvent.FIRST_ADMIN_CREATED, username=username, peer="")
        return created

    @retry_conflicts
    def prune(self, *, event_age: timedelta = EVENT_AGE, max_events: int = MAX_EVENTS) -> Pruned:
        """Delete expired refresh tokens, and events that are too old or too many; call it every few minutes.

        Skips rows that another transaction has locked, so that pruning never waits.
        """
        with self._database.write() as conn:
            events = conn.execute(_PRUNE_EVENTS, {"age": event_age, "count": max_events}).rowcount
            return Pruned(events=events, refresh_tokens=conn.execute(_PRUNE_TOKENS).rowcount)


_REVOKE_ALL = """
    DELETE FROM refresh_tokens WHERE admin_id = %(admin_id)s
"""


def revoke_logins(conn: Connection, admin_id: int) -> None:
    """Revoke every refresh token of an admin user, in the transaction that has changed that user.

    Otherwise a stolen refresh token would survive the change, because an exchange returns the current token epoch. Call
    it after the UPDATE of the admin user's row, whose lock excludes exchanges.
    """
    conn.execute(_REVOKE_ALL, {"admin_id": admin_id})


_FIND_CREDENTIALS = """
    SELECT admin_id, password_hash FROM admin_user WHERE username = %(username)s AND enabled
"""

# Admin users are few: reading all of them costs nothing next to a hash.
_HIGHEST_COST = r"""
    SELECT COALESCE(max(substring(password_hash FROM '\$2[aby]\$(1[0-6])\$')::int), 0) FROM admin_user WHERE enabled
"""

# The password is the same: neither the state of the admin user nor its sessions change.
_REHASH = """
    UPDATE admin_user SET password_hash = %(new_hash)s WHERE admin_id = %(admin_id)s
"""

# NO KEY: other transactions may still insert rows that refer to the owner.
_OWNER_BY_CREDENTIALS = """
    SELECT admin_id, username, role, token_epoch FROM admin_user
    WHERE username = %(username)s AND password_hash = %(password_hash)s AND enabled
    FOR NO KEY UPDATE
"""

_OWNER_OF_FAMILY = """
    SELECT admin_id, username, role, token_epoch FROM admin_user
    WHERE admin_id = (SELECT admin_id FROM refresh_tokens WHERE token_hash = %(token_hash)s)
    FOR NO KEY UPDATE
"""


def _caller_from_row(*, role: str, **columns: Any) -> Caller:
    return Caller(role=Role[role.upper()], **columns)


def _lock_owner(conn: Connection, query: LiteralString, wanted: dict[str, Any]) -> Caller | None:
    """Lock an admin user's row until the end of the transaction; its tokens do not change after that."""
    with conn.cursor(row_factory=kwargs_row(_caller_from_row)) as cursor:
        return cursor.execute(query, wanted).fetchone()


_BEGIN = """
    INSERT INTO refresh_tokens (token_hash, family_id, admin_id, create_time, expire_time)
    VALUES (%(token_hash)s, %(family_id)s, %(admin_id)s, clock_timestamp(), %(expire_time)s)
"""

_EXCHANGE = """
    WITH spent AS (
        UPDATE refresh_tokens t SET spent_time = clock_timestamp() FROM admin_user a
        WHERE token_hash = %(token_hash)s AND spent_time IS NULL AND expire_time > clock_timestamp()
          AND a.admin_id = t.admin_id AND a.enabled
        RETURNING family_id, t.admin_id
    )
    INSERT INTO refresh_tokens (token_hash, family_id, admin_id, create_time, expire_time)
    SELECT %(successor_hash)s, family_id, admin_id, clock_timestamp(), %(expire_time)s FROM spent
"""

_REVOKE = """
    DELETE FROM refresh_tokens
    WHERE family_id = (SELECT family_id FROM refresh_tokens WHERE token_hash = %(token_hash)s)
"""

_REVOKE_IF_SPENT = """
    DELETE FROM refresh_tokens
    WHERE family_id = (
        SELECT family_id FROM refresh_tokens WHERE token_hash = %(token_hash)s AND spent_time IS NOT NULL
    )
"""


def _sha256(refresh_token: str) -> bytes:
    # Unsalted and fast on purpose: the token has 256 random bits and is found by its hash.
    return hashlib.sha256(refresh_token.encode()).digest()


_RECORD = """
    INSERT INTO auth_events (event, username, peer) VALUES (%(event)s, %(username)s, %(peer)s)
"""


def _record(conn: Connection, event: AuthEvent, *, username: str, peer: str) -> None:
    conn.execute(_RECORD, {"event": event, "username": recordable(username), "peer": recordable(peer)})


def recordable(text: str) -> str:
    """Return any text of a client as it is recorded: it fits into a bounded column."""
    return text.replace("\0", "")[:MAX_EVENT_TEXT_CHARS]


# Filters that are not given are NULL; the planner folds them away.
LIST_EVENTS = """
    SELECT event_id, create_time, event, username, peer, subject_id FROM auth_events
    WHERE (%(before)s::bigint IS NULL OR event_id < %(before)s)
      AND (%(username)s::text IS NULL OR username = %(username)s)
      AND (%(event)s::text IS NULL OR event = %(event)s)
    ORDER BY event_id DESC LIMIT %(limit)s
"""

_ANY_ADMIN = """
    SELECT FROM admin_user LIMIT 1
"""

_CREATE_FIRST_ADMIN = """
    INSERT INTO admin_user (username, password_hash, role, create_time, update_time)
    SELECT %(username)s, %(password_hash)s, 'admin', now, now FROM clock_timestamp() AS now
    WHERE NOT EXISTS (SELECT FROM admin_user)
"""

# With fewer events than the bound, the inner query is null and only age counts.
_PRUNE_EVENTS = """
    DELETE FROM auth_events WHERE event_id IN (
        SELECT event_id FROM auth_events
        WHERE create_time < clock_timestamp() - %(age)s
           OR event_id <= (SELECT event_id FROM auth_events ORDER BY event_id DESC LIMIT 1 OFFSET %(count)s)
        FOR UPDATE SKIP LOCKED
    )
"""

_PRUNE_TOKENS = """
    DELETE FROM refresh_tokens WHERE token_hash IN (
        SELECT token_hash FROM refresh_tokens WHERE expire_time < clock_timestamp() FOR UPDATE SKIP LOCKED
    )
"""
