"""The mutation protocol: one transaction that locks the head, checks, writes, records and announces.

All mutations pass `Ledger.mutate`, one at a time: the lock on the head row is their order. What a mutation does is the
caller's function; that it is exactly one revision with exactly one audit entry, announced in its commit, is settled
here.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic

import psycopg
import rfc8785
from psycopg.rows import class_row

from gatekeeper_grpc.domain.audit import AuditEntry, hash_document, hash_entry
from gatekeeper_grpc.domain.errors import InvalidArgument, Unauthenticated
from gatekeeper_grpc.domain.mutation import Change, Intent, Result, Written
from gatekeeper_grpc.store.database import Connection, Database, one

CHANNEL = "gatekeeper_revision"
_SALT_BYTES = 16
# Until flags have environments, everything lives in this one.
_ENVIRONMENT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The locked head, as it will be: the revision being made and its time, and what its audit entry is chained to."""

    revision: int
    audit_seq: int
    prev_hash: bytes
    create_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect(Generic[Result]):
    """What a mutation did, and the answer to its caller; `preview` is the answer with `validate_only`."""

    result: Result
    preview: Result
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec(Generic[Result]):
    """How a result is kept as JSON values, to answer a retry of its request."""

    to_document: Callable[[Result], Any]
    from_document: Callable[[Any], Result]


class Ledger:
    """Carries out mutations, each in a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def mutate(
        self, intent: Intent, act: Callable[[Connection, Head], Effect[Result]], *, codec: Codec[Result]
    ) -> Written[Result]:
        """Carry out one mutation; when anything is raised, nothing of it remains.

        Args:
            intent: Who wants it and under which conditions.
            act: Checks against the current state and writes, inside the transaction, after the head is locked.
            codec: Keeps the result, should the request be sent again.

        Errors: `Unauthenticated` when the caller's token has been overtaken, `InvalidArgument` when `request_id` was
        used for another body, `Unavailable`, and what `act` raises.
        """
        with self._database.write() as conn:
            head = _lock_head(conn)
            _check_caller(conn, intent)
            answer = _earlier_answer(conn, intent)
            if answer:
                return Written(result=codec.from_document(json.loads(answer.result)), revision=answer.revision)
            effect = act(conn, head)
            written = Written(result=effect.result, revision=head.revision)
            if intent.validate_only:
                written = Written(result=effect.preview, revision=head.revision - 1)
                raise psycopg.Rollback
            _record(conn, head, intent, effect.change)
            _keep_answer(conn, head, intent, lambda: rfc8785.dumps(codec.to_document(effect.result)))
        return written


_LOCK_HEAD = """
    SELECT revision + 1, audit_seq + 1, audit_hash FROM revision_head FOR UPDATE
"""


def _lock_head(conn: Connection) -> Head:
    revision, audit_seq, prev_hash = one(conn.execute(_LOCK_HEAD))
    # A statement of its own: taken with the lock, it could be a time from before the wait, and times would not rise
    # with revisions.
    (now,) = one(conn.execute("SELECT clock_timestamp()"))
    return Head(revision=revision, audit_seq=audit_seq, prev_hash=prev_hash, create_time=now)


_IS_CURRENT = """
    SELECT EXISTS (
        SELECT FROM admin_user
        WHERE admin_id = %(admin_id)s AND enabled AND role = %(role)s AND token_epoch = %(token_epoch)s
    )
"""


def _check_caller(conn: Connection, intent: Intent) -> None:
    """Refuse a caller who was demoted, disabled or given another password since the token was made."""
    if intent.caller is None:
        return
    caller = intent.caller
    claims = {"admin_id": caller.admin_id, "role": caller.role.name.lower(), "token_epoch": caller.token_epoch}
    (is_current,) = one(conn.execute(_IS_CURRENT, claims))
    if not is_current:
        raise Unauthenticated.access_token()


@dataclass(frozen=True, slots=True)
class _Answer:
    request_hash: bytes
    revision: int
    result: bytes


_EARLIER_ANSWER = """
    SELECT request_hash, revision, result FROM idempotency_keys
    WHERE actor = %(actor)s AND action = %(action)s AND request_id = %(request_id)s
      AND create_time > clock_timestamp() - interval '24 hours'
"""


def _earlier_answer(conn: Connection, intent: Intent) -> _Answer | None:
    """Return what this very request was answered before, if it was."""
    if intent.request_id is None or intent.validate_only:
        return None
    key = {"actor": intent.actor, "action": intent.action, "request_id": intent.request_id}
    with conn.cursor(row_factory=class_row(_Answer)) as cursor:
        answer = cursor.execute(_EARLIER_ANSWER, key).fetchone()
    if answer and answer.request_hash != intent.request_hash:
        raise InvalidArgument.of("request_id", "was used for another request before; make a new UUID for each request")
    return answer


_KEEP_ANSWER = """
    INSERT INTO idempotency_keys (actor, action, request_id, request_hash, revision, result, create_time)
    VALUES (%(actor)s, %(action)s, %(request_id)s, %(request_hash)s, %(revision)s, %(result)s, %(create_time)s)
    ON CONFLICT ON CONSTRAINT idempotency_keys_pkey DO UPDATE
    SET request_hash = excluded.request_hash, revision = excluded.revision, result = excluded.result,
        create_time = excluded.create_time
"""


def _keep_answer(conn: Connection, head: Head, intent: Intent, result: Callable[[], bytes]) -> None:
    if intent.request_id is None:
        return
    row = {
        "actor": intent.actor,
        "action": intent.action,
        "request_id": intent.request_id,
        "request_hash": intent.request_hash,
        "revision": head.revision,
        "result": result(),
        "create_time": head.create_time,
    }
    conn.execute(_KEEP_ANSWER, row)


# One statement, one round trip under the lock. NOTIFY is sent by PostgreSQL when, and only when, the transaction
# commits.
_RECORD = """
    WITH change AS (
        INSERT INTO change_log (revision, create_time, resource_type, change_type, environment, key, subjects)
        VALUES (%(revision)s, %(create_time)s, %(resource)s, %(change)s, %(environment)s, %(key)s, %(subjects)s)
    ), entry AS (
        INSERT INTO audit_log (seq, format, revision, create_time, actor, action,
                               environment, resource_type, resource_key, document_hash, prev_hash, hash)
        VALUES (%(seq)s, %(format)s, %(revision)s, %(create_time)s, %(actor)s, %(action)s,
                %(environment)s, %(resource)s, %(key)s, %(document_hash)s, %(prev_hash)s, %(hash)s)
    ), document AS (
        INSERT INTO audit_documents (seq, salt, document) VALUES (%(seq)s, %(salt)s, %(document)s)
    ), head AS (
        UPDATE revision_head SET revision = %(revision)s, audit_seq = %(seq)s, audit_hash = %(hash)s
    )
    SELECT pg_notify(%(channel)s, %(revision)s::text)
"""


def _record(conn: Connection, head: Head, intent: Intent, change: Change) -> None:
    """Write the audit entry, the change-log row and the new head, and announce the revision."""
    salt = secrets.token_bytes(_SALT_BYTES)
    document = rfc8785.dumps({**change.document, "change_reason": intent.change_reason})
    entry = AuditEntry(
        seq=head.audit_seq,
        revision=head.revision,
        create_time=head.create_time,
        actor=intent.actor,
        action=intent.action,
        environment=_ENVIRONMENT,
        resource_type=change.resource,
        resource_key=change.key,
        document_hash=hash_document(salt, document),
        prev_hash=head.prev_hash,
    )
    row = {
        "revision": entry.revision,
        "create_time": entry.create_time,
        "resource": entry.resource_type,
        "change": change.change,
        "environment": entry.environment,
        "key": entry.resource_key,
        "subjects": list(change.subjects),
        "seq": entry.seq,
        "format": entry.format,
        "actor": entry.actor,
        "action": entry.action,
        "document_hash": entry.document_hash,
        "prev_hash": entry.prev_hash,
        "hash": hash_entry(entry),
        "salt": salt,
        "document": document,
        "channel": CHANNEL,
    }
    conn.execute(_RECORD, row)
