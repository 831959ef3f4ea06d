"""Logins in PostgreSQL: passwords, refresh tokens, and authentication events.

All refresh tokens that descend from one login are a family, which is a session. A token is good for one exchange. A
spent token that comes back shows that two parties hold it, so its family is revoked, unless it is the repetition of an
exchange whose response was lost (docs/decisions/0023-sessions-and-lost-answers.md). Spent tokens are kept until they
expire, to be recognised. The database holds only the SHA-256 of refresh tokens. Access tokens name their family and end
with it.

Every transaction that changes tokens first locks the row of the admin user that owns them; so does one that changes a
password or disables a user, because it updates that row. A family thus never gains a token while it is being revoked.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, LiteralString
from uuid import UUID, uuid4

from psycopg.rows import class_row, kwargs_row

from gatekeeper_grpc.domain.admin_user import (
    AuthEventEntry,
    Credentials,
    Exchange,
    Exchanged,
    Session,
    check_new_username,
)
from gatekeeper_grpc.domain.caller import NO_SESSION, Caller, Role
from gatekeeper_grpc.domain.commands import AuthEventFilter, CredentialFilter
from gatekeeper_grpc.domain.current_call import detached
from gatekeeper_grpc.domain.errors import FailedPrecondition, NotFound, Unauthenticated, Unavailable
from gatekeeper_grpc.instrumentation.counters import REFRESH_TOKENS_REUSED
from gatekeeper_grpc.store.postgres.caller_check import require_current_caller
from gatekeeper_grpc.store.postgres.database import Connection, Database, one
from gatekeeper_grpc.store.postgres.retries import retry_conflicts, retry_lost_read

MAX_EVENT_TEXT_CHARS = 128
EVENT_AGE = timedelta(days=90)
MAX_EVENTS = 100_000
MAX_SESSIONS = 100
"""Of one admin user."""
MAX_SPENT_TOKENS = 10_000
"""Of one session. One refresh in 15 minutes makes 8,640 in 90 days."""
# 1,000 events with so many fit into the 4 MiB that clients accept.
MAX_LISTED_SUBJECTS = 50


class AuthEvent(StrEnum):
    """The kinds of rows in `auth_events` about credentials; the others are in `access_trace.AccessEvent`."""

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
    REFRESH_REPEATED = "refresh_repeated"
    """The client of an exchange repeated it within 10 s, and was given the same successor again."""
    REFRESH_REUSED = "refresh_reused"
    """A spent refresh token was presented: it was stolen, or used twice. Its family was revoked."""
    LOGGED_OUT = "logged_out"
    """The holder revoked the family."""
    SESSION_DISPLACED = "session_displaced"
    """A login ended the oldest session of an admin user who had too many."""
    SESSION_REVOKED = "session_revoked"
    """The owner, or an admin user with role admin, revoked the family by `RevokeSession`."""


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
        address: str = "",
        to_change_password: bool = False,
    ) -> Caller:
        """Create a family with its first refresh token, and record the login. Of `MAX_SESSIONS` the oldest ends.

        Args:
            username: The admin user.
            password_hash: The hash that the password was checked against; it may have changed during the check.
            new_hash: Replaces that hash, which is of the same password; None: it stays.
            refresh_token: The secret; its hash is stored.
            expire_time: The token's expiry.
            peer: The client as gRPC names it, for the record.
            address: Its address, without a port.
            to_change_password: Begin it even if the password must be changed.

        Raises:
            FailedPrecondition: The password must be changed first.
            Unauthenticated: No enabled admin user has that name and hash any more.
        """
        with self._database.write(pipelined=True) as conn:
            owner = _lock_owner(conn, _OWNER_BY_CREDENTIALS, {"username": username, "password_hash": password_hash})
            if owner is None:
                raise Unauthenticated.credentials()
            if not to_change_password and conn.execute(_MUST_CHANGE, {"admin_id": owner.admin_id}).fetchall():
                raise FailedPrecondition.password_change_required(owner.username)
            if new_hash is not None:
                conn.execute(_REHASH, {"admin_id": owner.admin_id, "new_hash": new_hash})
            caller = replace(owner, session_id=uuid4())
            token = {"token_hash": _sha256(refresh_token), "expire_time": expire_time, "address": address}
            conn.execute(_BEGIN, {**token, "family_id": caller.session_id, "admin_id": owner.admin_id})
            _record(conn, AuthEvent.LOGIN_SUCCEEDED, username=owner.username, peer=peer)
            if conn.execute(_END_OLDEST, {"admin_id": owner.admin_id, "kept": MAX_SESSIONS}).fetchall():
                _record(conn, AuthEvent.SESSION_DISPLACED, username=owner.username, peer=peer)
        return caller

    @retry_conflicts
    def redeem(self, exchange: Exchange, *, peer: str = "", is_awaited: Callable[[], bool] = lambda: True) -> Exchanged:
        """Exchange a refresh token for its successor, and return its owner with the current role and token epoch.

        Of several callers with one token, the first gets a successor, and the next revokes the whole family. But one
        that comes from the same address after the first, within 10 s, gets the same successor, once, if that one has
        not been used.

        Args:
            exchange: The token and its successor.
            peer: The client as gRPC names it, for the record.
            is_awaited: Whether the client still waits for the answer. If not, nothing is spent: it may try again.

        Raises:
            Unauthenticated: The token is unknown, spent, revoked or expired, or its owner is disabled.
            Unavailable: The client no longer waits.
        """
        token = {"token_hash": _sha256(exchange.token)}
        is_reused = False
        with self._database.write(pipelined=True) as conn:
            owner = _lock_owner(conn, _OWNER_OF_FAMILY, token)
            exchanged = owner and (_exchange(conn, owner, exchange) or _repeat(conn, owner, exchange, peer=peer))
            if exchanged and not is_awaited():
                raise Unavailable("the client left before its refresh token was exchanged")
            if exchanged:
                return exchanged
            if owner and conn.execute(_REVOKE_IF_SPENT, token).fetchall():
                is_reused = True
                _record(conn, AuthEvent.REFRESH_REUSED, username=owner.username, peer=peer)
        REFRESH_TOKENS_REUSED.inc(is_reused)
        # Not inside the transaction: the error would roll the revocation back.
        raise Unauthenticated.credentials()

    @retry_lost_read
    def list_sessions(self, wanted: CredentialFilter) -> list[Session]:
        """Read a page of sessions that have not expired, in order of their ids."""
        filters = {"admin_id": wanted.admin_id, "username": wanted.username or None, "limit": wanted.limit}
        with self._database.read() as conn, conn.cursor(row_factory=class_row(Session)) as cursor:
            return cursor.execute(LIST_SESSIONS, {**filters, "after": wanted.after or NO_SESSION}).fetchall()

    @retry_conflicts
    def revoke_session(self, session_id: UUID, caller: Caller, *, owner_id: int | None, peer: str = "") -> None:
        """Delete a session, and record who did it.

        Args:
            session_id: The session.
            caller: Who revokes it.
            owner_id: Only a session of this admin user; None: of any.
            peer: The client as gRPC names it, for the record.

        Raises:
            NotFound: There is no such session.
            Unauthenticated: The caller is no longer current.
        """
        wanted = {"session_id": session_id, "admin_id": owner_id}
        with self._database.write(pipelined=True) as conn:
            require_current_caller(conn)
            owner = _lock_owner(conn, _OWNER_OF_SESSION, wanted)
            if owner is None or not conn.execute(_REVOKE_SESSION, wanted).fetchall():
                raise NotFound.session(str(session_id))
            actor = "" if owner.admin_id == caller.admin_id else caller.name
            _record(conn, AuthEvent.SESSION_REVOKED, username=owner.username, peer=peer, actor=actor)

    @retry_conflicts
    def revoke(self, refresh_token: str, *, peer: str = "") -> None:
        """Delete the family of a refresh token, spent or not, and record the logout; no-op without a family."""
        token = {"token_hash": _sha256(refresh_token)}
        with self._database.write(pipelined=True) as conn:
            owner = _lock_owner(conn, _OWNER_OF_FAMILY, token)
            if owner and conn.execute(_REVOKE, token).fetchall():
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
        with detached(), self._database.write(pipelined=True) as conn:
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
            "user_id": wanted.user_id or None,
            "subjects": MAX_LISTED_SUBJECTS,
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
        """Delete what is too old or too much; call it every few minutes.

        These are expired refresh tokens, of each session the oldest of more than `MAX_SPENT_TOKENS` that are spent, and
        events.

        Reads of personal data are deleted by age alone: by a flood of reads, or of logins, nobody can remove the trace
        of an earlier read.

        Skips rows that another transaction has locked, so that pruning never waits.
        """
        with self._database.write() as conn:
            events = conn.execute(_PRUNE_EVENTS, {"age": event_age, "count": max_events}).rowcount
            return Pruned(
                events=events, refresh_tokens=conn.execute(_PRUNE_TOKENS, {"spent": MAX_SPENT_TOKENS}).rowcount
            )


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

_MUST_CHANGE = """
    SELECT FROM admin_user WHERE admin_id = %(admin_id)s AND must_change_password
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


_OWNER_OF_SESSION = """
    SELECT admin_id, username, role, token_epoch FROM admin_user
    WHERE admin_id = (SELECT admin_id FROM refresh_tokens WHERE family_id = %(session_id)s LIMIT 1)
      AND (%(admin_id)s::bigint IS NULL OR admin_id = %(admin_id)s)
    FOR NO KEY UPDATE
"""

_BEGIN = """
    INSERT INTO refresh_tokens (token_hash, family_id, admin_id, create_time, expire_time, login_time, address)
    SELECT %(token_hash)s, %(family_id)s, %(admin_id)s, now, %(expire_time)s, now, %(address)s
    FROM clock_timestamp() AS now
"""

_END_OLDEST = """
    DELETE FROM refresh_tokens WHERE admin_id = %(admin_id)s AND family_id IN (
        SELECT family_id FROM refresh_tokens WHERE admin_id = %(admin_id)s AND spent_time IS NULL
        ORDER BY COALESCE(login_time, create_time) DESC, family_id OFFSET %(kept)s
    ) RETURNING family_id
"""

# The nonce of the token before is deleted: its successor has now been used.
_EXCHANGE = """
    WITH spent AS (
        UPDATE refresh_tokens t
        SET spent_time = clock_timestamp(), successor_hash = %(successor_hash)s, successor_nonce = %(nonce)s
        FROM admin_user a
        WHERE token_hash = %(token_hash)s AND spent_time IS NULL AND expire_time > clock_timestamp()
          AND COALESCE(login_time, t.create_time) + %(max_age)s > clock_timestamp()
          AND a.admin_id = t.admin_id AND a.enabled
        RETURNING family_id, t.admin_id, COALESCE(login_time, t.create_time) AS login_time
    ), used AS (
        UPDATE refresh_tokens SET successor_nonce = NULL
        WHERE family_id = (SELECT family_id FROM spent) AND successor_hash = %(token_hash)s
    )
    INSERT INTO refresh_tokens (token_hash, family_id, admin_id, create_time, expire_time, login_time, address)
    SELECT %(successor_hash)s, family_id, admin_id, clock_timestamp(), LEAST(%(expire_time)s, login_time + %(max_age)s),
           login_time, %(address)s
    FROM spent
    RETURNING family_id, expire_time
"""

# A call that arrived, or a transaction that began, before the token was spent is a racer and no repetition. now() is
# when this transaction began.
_REPEAT = """
    UPDATE refresh_tokens t SET repeat_time = clock_timestamp() FROM refresh_tokens successor, admin_user a
    WHERE t.token_hash = %(token_hash)s AND t.repeat_time IS NULL
      AND t.spent_time < LEAST(now(), clock_timestamp() - %(waited)s)
      AND t.spent_time > clock_timestamp() - interval '10 s'
      AND successor.token_hash = t.successor_hash AND successor.spent_time IS NULL
      AND successor.address = %(address)s
      AND a.admin_id = t.admin_id AND a.enabled
    RETURNING t.family_id, t.successor_nonce, successor.expire_time
"""


def _exchange(conn: Connection, owner: Caller, exchange: Exchange) -> Exchanged | None:
    """Spend a token for its successor; None if it cannot be spent."""
    values = {
        "token_hash": _sha256(exchange.token),
        "successor_hash": _sha256(exchange.successor),
        "nonce": exchange.nonce,
        "expire_time": exchange.expire_time,
        "max_age": exchange.session_max_age,
        "address": exchange.address,
    }
    row = conn.execute(_EXCHANGE, values).fetchone()
    if row is None:
        return None
    session_id, expire_time = row
    return Exchanged(caller=replace(owner, session_id=session_id), nonce=exchange.nonce, expire_time=expire_time)


def _repeat(conn: Connection, owner: Caller, exchange: Exchange, *, peer: str) -> Exchanged | None:
    """Repeat an exchange whose response may have been lost; None if this is no repetition of one."""
    waited = timedelta(seconds=time.monotonic() - exchange.arrived_at)
    wanted = {"token_hash": _sha256(exchange.token), "address": exchange.address, "waited": waited}
    row = conn.execute(_REPEAT, wanted).fetchone()
    if row is None:
        return None
    family_id, nonce, expire_time = row
    _record(conn, AuthEvent.REFRESH_REPEATED, username=owner.username, peer=peer)
    return Exchanged(caller=replace(owner, session_id=family_id), nonce=nonce, expire_time=expire_time)


# The token that is not spent stands for its session.
LIST_SESSIONS = """
    SELECT t.family_id AS session_id, a.username, COALESCE(t.login_time, t.create_time) AS create_time,
           t.create_time AS refresh_time, t.expire_time, t.address
    FROM refresh_tokens t JOIN admin_user a USING (admin_id)
    WHERE t.spent_time IS NULL AND t.expire_time > clock_timestamp() AND t.family_id > %(after)s
      AND (%(admin_id)s::bigint IS NULL OR t.admin_id = %(admin_id)s)
      AND (%(username)s::text IS NULL OR a.username = %(username)s)
    ORDER BY t.family_id LIMIT %(limit)s
"""

_REVOKE_SESSION = """
    DELETE FROM refresh_tokens WHERE family_id = %(session_id)s RETURNING family_id
"""

_REVOKE = """
    DELETE FROM refresh_tokens
    WHERE family_id = (SELECT family_id FROM refresh_tokens WHERE token_hash = %(token_hash)s)
    RETURNING family_id
"""

_REVOKE_IF_SPENT = """
    DELETE FROM refresh_tokens
    WHERE family_id = (
        SELECT family_id FROM refresh_tokens WHERE token_hash = %(token_hash)s AND spent_time IS NOT NULL
    ) RETURNING family_id
"""


def _sha256(refresh_token: str) -> bytes:
    # Unsalted and fast on purpose: the token has 256 random bits and is found by its hash.
    return hashlib.sha256(refresh_token.encode()).digest()


_RECORD = """
    INSERT INTO auth_events (event, username, peer, actor)
    VALUES (%(event)s, %(username)s, %(peer)s, %(actor)s)
"""


def _record(conn: Connection, event: AuthEvent, *, username: str, peer: str, actor: str = "") -> None:
    row = {"username": recordable(username), "peer": recordable(peer), "actor": actor}
    conn.execute(_RECORD, {"event": event, **row})


def recordable(text: str) -> str:
    """Return any text of a client as it is recorded: it fits into a bounded column."""
    return text.replace("\0", "")[:MAX_EVENT_TEXT_CHARS]


# Filters that are not given are NULL; the planner folds them away.
LIST_EVENTS = """
    SELECT event_id, create_time, event, username, peer, actor,
           coalesce(subject_ids[1:%(subjects)s], '{}') AS subject_ids,
           coalesce(cardinality(subject_ids), 0) AS subject_count
    FROM auth_events
    WHERE (%(before)s::bigint IS NULL OR event_id < %(before)s)
      AND (%(username)s::text IS NULL OR username = %(username)s)
      AND (%(event)s::text IS NULL OR event = %(event)s)
      AND (%(user_id)s::text IS NULL
           OR (SELECT subject_id FROM subjects WHERE user_id = %(user_id)s) = ANY(subject_ids))
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

# With fewer events than the bound, the inner query is null and only age counts. `subject_ids` is null for events about
# credentials.
_PRUNE_EVENTS = """
    DELETE FROM auth_events WHERE event_id IN (
        SELECT event_id FROM auth_events
        WHERE create_time < clock_timestamp() - %(age)s
           OR subject_ids IS NULL AND event_id <= (
               SELECT event_id FROM auth_events WHERE subject_ids IS NULL
               ORDER BY event_id DESC LIMIT 1 OFFSET %(count)s)
        FOR UPDATE SKIP LOCKED
    )
"""

_PRUNE_TOKENS = """
    DELETE FROM refresh_tokens WHERE token_hash IN (
        SELECT token_hash FROM refresh_tokens
        WHERE expire_time < clock_timestamp() OR token_hash IN (
            SELECT token_hash FROM (
                SELECT token_hash, row_number() OVER (PARTITION BY family_id ORDER BY spent_time DESC) AS number
                FROM refresh_tokens WHERE spent_time IS NOT NULL
            ) AS spent WHERE number > %(spent)s
        )
        FOR UPDATE SKIP LOCKED
    )
"""
