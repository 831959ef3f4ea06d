"""The mutation protocol: one transaction that locks the head, checks, writes, records and announces.

Every mutation passes `MutationRunner.mutate`, one at a time: the lock on the head row is their order. The caller's
function does the change; this module makes it exactly one revision with exactly one audit entry, announced in its
commit.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, Protocol
from uuid import UUID

import psycopg
import rfc8785
from psycopg.rows import class_row

from gatekeeper_grpc.domain.audit import AuditAnchor, AuditEntry, hash_document, hash_entry
from gatekeeper_grpc.domain.errors import InvalidArgument, Unauthenticated, Unavailable
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, ResourceType, Result, Written
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH, epoch_of
from gatekeeper_grpc.store.postgres.database import Connection, Database, one
from gatekeeper_grpc.store.postgres.retries import retry_conflicts

CHANNEL = "gatekeeper_revision"
_SALT_BYTES = 16
# Until flags have environments, everything lives in this one.
_ENVIRONMENT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The locked head, as it will be: the revision being made and its time, and what its audit entry is chained to."""

    installation_id: UUID
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


class Sealer(Protocol):
    """Encrypts what the database keeps and must not tell."""

    def seal(self, plain: bytes) -> bytes:
        """Encrypt and authenticate."""
        ...

    def open(self, sealed: bytes) -> bytes:
        """Undo `seal`; raise when no key fits or the bytes were altered."""
        ...


class MutationRunner:
    """Carries out mutations, each in a transaction of its own.

    `sealer` keeps stored answers from whoever reads a dump. `served_revision` tells which revision of an installation
    this instance has served, 0 for none: a head that is older has lost commits, and on it no mutation is carried out.
    `announce` is told each revision after its commit, in addition to PostgreSQL's notification; it must not wait.
    """

    def __init__(
        self,
        database: Database,
        sealer: Sealer,
        *,
        served_revision: Callable[[UUID], int] = lambda _: 0,
        announce: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._served_revision = served_revision
        self._announce = announce

    @retry_conflicts
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
            self._check_nothing_lost(head)
            _check_caller(conn, intent)
            answer = _earlier_answer(conn, intent)
            if answer:
                return self._repeat(answer, intent, codec)
            effect = act(conn, head)
            if intent.validate_only:
                written = Written(result=effect.preview, revision=head.revision - 1, anchor=None)
                raise psycopg.Rollback
            anchor = _record(conn, head, intent, effect.change)
            written = Written(result=effect.result, revision=head.revision, anchor=anchor)
            if intent.request_id:
                sealed = self._sealed(intent, codec.to_document(effect.result))
                _keep_answer(conn, head, intent, anchor=anchor, change=effect.change, sealed=sealed)
        if written.anchor:
            self._announce(written.revision)
        return written

    def _check_nothing_lost(self, head: Head) -> None:
        # Nobody else commits while the head is locked, so what is served cannot be newer for any other reason.
        if head.revision - 1 < self._served_revision(head.installation_id):
            raise Unavailable("the database has lost revisions that were served", retry_after_s=1.0)

    def _sealed(self, intent: Intent, result: Any) -> bytes:
        """Seal an answer together with its request's hash: a request may hold a password, and a bare hash a guess."""
        return self._sealer.seal(rfc8785.dumps({"request_hash": intent.request_hash.hex(), "result": result}))

    def _repeat(self, answer: "_Answer", intent: Intent, codec: Codec[Result]) -> Written[Result]:
        kept = json.loads(self._sealer.open(answer.result))
        if kept["request_hash"] != intent.request_hash.hex():
            raise InvalidArgument.of(
                "request_id", "was used for another request before; make a new UUID for each request"
            )
        result = codec.from_document(kept["result"])
        return Written(result=result, revision=answer.revision, anchor=answer.anchor)

    @retry_conflicts
    def begin_epoch(
        self, intent: Intent, *, known_revision: int, known_hash: bytes = b"", only_if_lost: bool
    ) -> Written[bool]:
        """Move the head to the first revision of a new epoch.

        Args:
            intent: Who says that commits were lost.
            known_revision: A revision that there was; the epoch is a later one than its. 0: nobody knows of any.
            known_hash: Of the audit entry that made it; empty: nobody knows.
            only_if_lost: Move nothing unless the head is older than `known_revision`, or came there in another way; so
                of several callers that report one loss, one moves the head.

        Returns:
            Whether this call moved the head, and the head's revision.
        """
        with self._database.write() as conn:
            head = _lock_head(conn)
            current = head.revision - 1
            is_kept = current >= known_revision and not (
                epoch_of(current) == epoch_of(known_revision) and is_other_history(conn, known_revision, known_hash)
            )
            if only_if_lost and is_kept:
                return Written(result=False, revision=current, anchor=None)
            first = (epoch_of(max(current, known_revision)) + 1) * REVISIONS_PER_EPOCH
            change = Change(
                resource=ResourceType.INSTALLATION,
                key="epoch",
                change=ChangeType.UPDATED,
                document={"known_revision": known_revision, "previous_revision": current},
            )
            anchor = _record(conn, replace(head, revision=first), intent, change)
        self._announce(first)
        return Written(result=True, revision=first, anchor=anchor)


HASH_OF_REVISION = """
    SELECT hash FROM audit_log WHERE revision = %(revision)s
"""


def is_other_history(conn: Connection, revision: int, audit_hash: bytes) -> bool:
    """Tell whether a revision was made by another audit entry than one with this hash.

    A standby was promoted that lacked it, and went on to as many revisions before anybody noticed. No, when the hash is
    empty or the entry is archived.
    """
    row = conn.execute(HASH_OF_REVISION, {"revision": revision}).fetchone() if audit_hash else None
    return row is not None and row[0] != audit_hash


_LOCK_HEAD = """
    SELECT installation_id, revision + 1, audit_seq + 1, audit_hash FROM revision_head FOR UPDATE
"""


def _lock_head(conn: Connection) -> Head:
    installation_id, revision, audit_seq, prev_hash = one(conn.execute(_LOCK_HEAD))
    # A statement of its own: taken with the lock, it could be a time from before the wait, and times would not rise
    # with revisions.
    (now,) = one(conn.execute("SELECT clock_timestamp()"))
    return Head(
        installation_id=installation_id,
        revision=revision,
        audit_seq=audit_seq,
        prev_hash=prev_hash,
        create_time=now,
    )


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
    revision: int
    audit_seq: int
    audit_hash: bytes
    result: bytes

    @property
    def anchor(self) -> AuditAnchor:
        return AuditAnchor(seq=self.audit_seq, hash=self.audit_hash)


_EARLIER_ANSWER = """
    SELECT revision, audit_seq, audit_hash, result FROM idempotency_keys
    WHERE actor = %(actor)s AND action = %(action)s AND request_id = %(request_id)s
      AND create_time > clock_timestamp() - interval '24 hours'
"""


def _earlier_answer(conn: Connection, intent: Intent) -> _Answer | None:
    """Return what was answered under this request id before, if anything was."""
    if intent.request_id is None or intent.validate_only:
        return None
    key = {"actor": intent.actor, "action": intent.action, "request_id": intent.request_id}
    with conn.cursor(row_factory=class_row(_Answer)) as cursor:
        return cursor.execute(_EARLIER_ANSWER, key).fetchone()


_KEEP_ANSWER = """
    INSERT INTO idempotency_keys (actor, action, request_id, revision, audit_seq, audit_hash, subjects, result,
                                  create_time)
    VALUES (%(actor)s, %(action)s, %(request_id)s, %(revision)s, %(audit_seq)s, %(audit_hash)s, %(subjects)s,
            %(result)s, %(create_time)s)
    ON CONFLICT ON CONSTRAINT idempotency_keys_pkey DO UPDATE
    SET revision = excluded.revision, audit_seq = excluded.audit_seq, audit_hash = excluded.audit_hash,
        subjects = excluded.subjects, result = excluded.result, create_time = excluded.create_time
"""


def _keep_answer(
    conn: Connection, head: Head, intent: Intent, *, anchor: AuditAnchor, change: Change, sealed: bytes
) -> None:
    row = {
        "actor": intent.actor,
        "action": intent.action,
        "request_id": intent.request_id,
        "revision": head.revision,
        "audit_seq": anchor.seq,
        "audit_hash": anchor.hash,
        "subjects": list(change.subjects),
        "result": sealed,
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


def _record(conn: Connection, head: Head, intent: Intent, change: Change) -> AuditAnchor:
    """Write the audit entry, the change-log row and the new head, and announce the revision; return the new anchor."""
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
    anchor = AuditAnchor(seq=entry.seq, hash=hash_entry(entry))
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
        "hash": anchor.hash,
        "salt": salt,
        "document": document,
        "channel": CHANNEL,
    }
    conn.execute(_RECORD, row)
    return anchor
