"""The mutation protocol: one transaction that locks the head, checks, writes, records and announces.

Every mutation runs in `MutationRunner.mutate`, one at a time, in the order in which they lock the head row. The
caller's function makes the change; this module adds exactly one revision and one audit entry for each changed resource,
and PostgreSQL announces the last revision at the commit. A mutation that finds everything as it should be adds neither.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Generic, LiteralString, TypeVar
from uuid import UUID

import psycopg
import rfc8785
from psycopg.rows import class_row, dict_row
from pydantic import TypeAdapter, ValidationError

from gatekeeper_grpc.domain.audit import (
    FORMAT,
    FORMAT_WITH_EVIDENCE,
    SALT_BYTES,
    AuditAnchor,
    AuditEntry,
    hash_document,
)
from gatekeeper_grpc.domain.caller import Caller, note_caller_checked
from gatekeeper_grpc.domain.errors import FailedPrecondition, InvalidArgument, Unauthenticated, Unavailable
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, ResourceType, Result, Written
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH, epoch_of
from gatekeeper_grpc.domain.sealer import Sealer
from gatekeeper_grpc.instrumentation.counters import AUDIT_APPEND_DURATION
from gatekeeper_grpc.instrumentation.spans import TRACES
from gatekeeper_grpc.store.audit.lines import AuditLine
from gatekeeper_grpc.store.postgres.caller_check import CALLER_IS_CURRENT, NO_CLAIMS, claims
from gatekeeper_grpc.store.postgres.database import Connection, Database, one
from gatekeeper_grpc.store.postgres.retries import retry_conflicts
from gatekeeper_grpc.store.stored_results import forget_oldest

Resource = TypeVar("Resource")

CHANNEL = "gatekeeper_revision"
# Until flags have environments, everything is in this one.
_ENVIRONMENT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The locked head as the mutation will leave it: its revision and time, and the hash that its entry continues."""

    installation_id: UUID
    revision: int
    audit_seq: int
    prev_hash: bytes
    create_time: datetime

    @property
    def previous(self) -> AuditAnchor:
        """The last entry before the one that the mutation makes."""
        return AuditAnchor(seq=self.audit_seq - 1, hash=self.prev_hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect(Generic[Result]):
    """The change that a mutation made, and its result; `preview` is the result under `validate_only`.

    `change` None: everything was as the mutation would have made it, and nothing was written. `further` are changes of
    other resources by the same mutation, in the order of their revisions. `subjects` are the people whom the result
    tells about.
    """

    result: Result
    preview: Result
    change: Change | None
    further: tuple[Change, ...] = ()
    subjects: tuple[UUID, ...] = ()


def unchanged(result: Result, *, subjects: tuple[UUID, ...] = ()) -> Effect[Result]:
    """Return the effect of a mutation that has nothing to change: its result is the resource as it is."""
    return Effect(result=result, preview=result, change=None, subjects=subjects)


NOTHING: TypeAdapter[None] = TypeAdapter(type(None))


def change_of(
    resource: ResourceType,
    before: Resource | None,
    after: Resource | None,
    *,
    key: Callable[[Resource], str],
    document: Callable[[Resource], dict[str, Any]],
    **more: object,
) -> Change:
    """Return the change of a resource from one state to another; None: it did not exist before, or does not after.

    Args:
        resource: The kind of resource.
        before: Its state before.
        after: Its state after.
        key: Returns its key.
        document: Returns a state as JSON values.
        more: More about the change, for the audit log.
    """
    existing = after or before
    assert existing is not None  # noqa: S101 - a change has at least one side
    return Change(
        resource=resource,
        key=key(existing),
        change=ChangeType.CREATED if before is None else ChangeType.DELETED if after is None else ChangeType.UPDATED,
        document={"before": before and document(before), "after": after and document(after), **more},
    )


class MutationRunner:
    """Carries out mutations, each in a transaction of its own.

    Args:
        database: The database that they change.
        sealer: Encrypts stored results, so that a dump does not reveal them.
        served_revision: Returns the revision of an installation that this instance has served, 0 for none. An older
            head has lost commits; no mutation is carried out on it.
        announce: Receives each revision after its commit, in addition to PostgreSQL's notification; must not block.
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
        self,
        intent: Intent,
        act: Callable[[Connection, Head], Effect[Result]],
        *,
        codec: TypeAdapter[Result],
        pipelined: bool = True,
    ) -> Written[Result]:
        """Carry out one mutation; if anything is raised, nothing of it remains.

        If there was nothing to change, what is returned has the current revision and no anchor.

        Args:
            intent: The caller and its conditions.
            act: Checks the current state and writes, inside the transaction, after the head is locked.
            codec: Converts the result to JSON values and back, to answer a retry of the request.
            pipelined: See `Database.write_at_head`, whose bounds `act` must keep.

        Raises:
            Unauthenticated: The caller was demoted, disabled, logged out or given another password since its token was
                made, or its API token was revoked.
            InvalidArgument: `request_id` was used for another body.
            FailedPrecondition: The stored result of the request cannot be read by this release.
            Unavailable: The database cannot be reached, or has lost revisions that were served.
            GatekeeperError: Whatever `act` raises.
        """
        lines, recorded_at = list[AuditLine](), 0.0
        with TRACES.causing() as cause, self._database.write_at_head(pipelined=pipelined) as conn:
            head, caller_is_current, stored = _lock_head(conn, intent, self._database.limits_at_head())
            # First: a database that has lost commits may have lost the caller's newest password as well.
            self._check_nothing_lost(head)
            if not caller_is_current:
                raise Unauthenticated.access_token()
            note_caller_checked()
            if stored:
                return self._repeat(stored, intent, codec)
            effect = act(conn, head)
            if intent.validate_only:
                written = Written(result=effect.preview, revision=head.revision - 1, anchor=None)
                raise psycopg.Rollback
            recorded_at = time.monotonic()
            lines = _record(conn, head, intent, [effect.change, *effect.further]) if effect.change else []
            if lines:
                cause(lines[-1].revision)
            written = _written(head, effect, lines)
            if intent.request_id:
                subjects = (*(effect.change.subjects if effect.change else ()), *effect.subjects)
                sealed = self._sealed(intent, written, codec)
                _store_result(conn, head, intent, written, subjects=subjects, sealed=sealed)
        if lines:
            AUDIT_APPEND_DURATION.observe(time.monotonic() - recorded_at)
            self._tell(lines)
        return written

    def _tell(self, lines: Sequence[AuditLine]) -> None:
        """Log and announce a mutation, after its commit and only here: nobody else knows that it was committed."""
        for line in lines:
            line.log()
        self._announce(lines[-1].revision)

    def _check_nothing_lost(self, head: Head) -> None:
        # No other mutation commits while the head is locked, so the served revision cannot be newer for another reason.
        if head.revision - 1 < self._served_revision(head.installation_id):
            raise Unavailable("the database has lost revisions that were served", retry_after_s=1.0)

    def _sealed(self, intent: Intent, written: Written[Result], codec: TypeAdapter[Result]) -> bytes:
        """Seal a result with its request's hash: from a bare hash, a password in the request could be guessed."""
        result = codec.dump_python(written.result, mode="json")
        stored = {"request_hash": intent.request_hash.hex(), "result": result, "changed": written.anchor is not None}
        return self._sealer.seal(rfc8785.dumps(stored))

    def _repeat(self, stored: "_StoredResult", intent: Intent, codec: TypeAdapter[Result]) -> Written[Result]:
        kept = json.loads(self._sealer.open(stored.result))
        if kept["request_hash"] != intent.request_hash.hex():
            raise InvalidArgument.of(
                "request_id", "was used for another request before; make a new UUID for each request"
            )
        try:
            result = codec.validate_python(kept["result"])
        except (ValidationError, InvalidArgument) as exc:
            raise FailedPrecondition(
                f"this request was carried out at revision {stored.revision}, but another release of Gatekeeper stored"
                " its response in a format that this one cannot read; read the resource instead",
                metadata={"revision": str(stored.revision)},
            ) from exc
        # Results of earlier releases lack "changed": to them, every mutation was a change.
        anchor = stored.anchor if kept.get("changed", True) else None
        return Written(result=result, revision=stored.revision, anchor=anchor)

    @retry_conflicts
    def begin_epoch(
        self, intent: Intent, *, known_revision: int, known_hash: bytes = b"", only_if_lost: bool
    ) -> Written[bool]:
        """Move the head to the first revision of a new epoch.

        Args:
            intent: Names the reporter of the loss.
            known_revision: A revision that existed; the new epoch is later than its epoch. 0: none is known.
            known_hash: The hash of the audit entry that made it; empty: unknown.
            only_if_lost: Do nothing unless the head is older than `known_revision` or has another history. Of several
                callers that report one loss, one moves the head.

        Returns:
            Whether this call moved the head, and the head's revision.

        Raises:
            Unavailable: The database cannot be reached.
        """
        with self._database.write_at_head() as conn:
            head, *_ = _lock_head(conn, intent, self._database.limits_at_head())
            current = head.revision - 1
            is_kept = current >= known_revision and not (
                epoch_of(current) == epoch_of(known_revision)
                and is_other_history(known_hash, select_hash(conn, known_revision).fetchone())
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
            lines = _record(conn, replace(head, revision=first), intent, [change])
        self._tell(lines)
        return Written(result=True, revision=first, anchor=lines[-1].anchor)


HASH_OF_REVISION = """
    SELECT hash FROM audit_log WHERE revision = %(revision)s
"""


def select_hash(conn: Connection, revision: int) -> psycopg.Cursor[tuple[bytes]]:
    """Read the hash of the audit entry that made a revision; no row if the entry is archived or lost."""
    return conn.execute(HASH_OF_REVISION, {"revision": revision})


def is_other_history(known_hash: bytes, kept: tuple[bytes] | None) -> bool:
    """Return whether the audit entry of a revision has another hash than the one that is known of it.

    It has when a standby that lacked the revision was promoted and has since made as many revisions.

    Args:
        known_hash: What is known; empty: nothing.
        kept: What `select_hash` has found.
    """
    return bool(known_hash) and kept is not None and kept[0] != known_hash


_LIMIT_WAIT = "SELECT set_config('statement_timeout', %(to_lock)s, true)"
_LOCK_HEAD = """
    SELECT installation_id, revision + 1 AS revision, audit_seq + 1 AS audit_seq, audit_hash AS prev_hash
    FROM revision_head FOR UPDATE
"""


# A statement after the lock: in the locking statement the clock could be read before the wait for the lock, so that
# times would not rise with revisions, and the caller could be seen as before the last mutation.
_READ_CLOCK_AND_CALLER: LiteralString = (
    """
    SELECT clock_timestamp(), %(admin_id)s::bigint IS NULL OR """
    + CALLER_IS_CURRENT
    + ", set_config('statement_timeout', %(after)s, true)"
)


def _lock_head(
    conn: Connection, intent: Intent, limits: Mapping[str, str]
) -> tuple[Head, bool, "_StoredResult | None"]:
    """Lock the head and read what is to be known under the lock; in a pipeline, in one round trip.

    Args:
        conn: From `Database.write_at_head`.
        intent: Whose head it will be.
        limits: From `Database.limits_at_head`.

    Returns:
        The head; whether the claims of the caller's token are still true, always without a caller; and the result that
        an earlier request with the same id has stored.

    Raises:
        psycopg.errors.LockNotAvailable: The lock is not free in time.
    """
    conn.execute(_LIMIT_WAIT, limits)
    try:
        locked = conn.cursor(row_factory=dict_row).execute(_LOCK_HEAD)
        read = conn.execute(_READ_CLOCK_AND_CALLER, {**_claims(intent.caller), **limits})
        results = _find_result(conn, intent)
        head = one(locked)
    except psycopg.errors.QueryCanceled as exc:  # The statement has done nothing but wait.
        raise psycopg.errors.LockNotAvailable(str(exc)) from exc
    create_time, caller_is_current, _ = one(read)
    return Head(**head, create_time=create_time), caller_is_current, results.fetchone() if results else None


def _claims(caller: Caller | None) -> Mapping[str, object]:
    return claims(caller) if caller else NO_CLAIMS


@dataclass(frozen=True, slots=True)
class _StoredResult:
    revision: int
    audit_seq: int
    audit_hash: bytes
    result: bytes

    @property
    def anchor(self) -> AuditAnchor:
        return AuditAnchor(seq=self.audit_seq, hash=self.audit_hash)


_FIND_RESULT = """
    SELECT revision, audit_seq, audit_hash, result FROM idempotency_keys
    WHERE actor = %(actor)s AND action = %(action)s AND request_id = %(request_id)s
      AND create_time > clock_timestamp() - interval '24 hours'
"""


def _find_result(conn: Connection, intent: Intent) -> psycopg.Cursor[_StoredResult] | None:
    """Look for the result that an earlier request with this id has stored."""
    if intent.request_id is None or intent.validate_only:
        return None
    key = {"actor": intent.requester, "action": intent.action, "request_id": intent.request_id}
    return conn.cursor(row_factory=class_row(_StoredResult)).execute(_FIND_RESULT, key)


_STORE_RESULT = """
    INSERT INTO idempotency_keys (actor, action, request_id, revision, audit_seq, audit_hash, subjects, result,
                                  create_time)
    VALUES (%(actor)s, %(action)s, %(request_id)s, %(revision)s, %(audit_seq)s, %(audit_hash)s, %(subjects)s,
            %(result)s, %(create_time)s)
    ON CONFLICT ON CONSTRAINT idempotency_keys_pkey DO UPDATE
    SET revision = excluded.revision, audit_seq = excluded.audit_seq, audit_hash = excluded.audit_hash,
        subjects = excluded.subjects, result = excluded.result, create_time = excluded.create_time
"""


def _store_result(
    conn: Connection,
    head: Head,
    intent: Intent,
    written: Written[Any],
    *,
    subjects: tuple[UUID, ...],
    sealed: bytes,
) -> None:
    anchor = written.anchor or head.previous
    row = {
        "actor": intent.requester,
        "action": intent.action,
        "request_id": intent.request_id,
        "revision": written.revision,
        "audit_seq": anchor.seq,
        "audit_hash": anchor.hash,
        "subjects": list(subjects),
        "result": sealed,
        "create_time": head.create_time,
    }
    conn.execute(_STORE_RESULT, row)
    forget_oldest(conn, intent.requester, audit_seq=anchor.seq)


# One statement, one round trip under the lock, however many entries. PostgreSQL sends the notification only if the
# transaction commits. Arrays of arrays must be rectangular, so the subjects of each entry come as text.
_RECORD = """
    WITH made AS (
        SELECT * FROM unnest(
            %(seq)s::bigint[], %(format)s::smallint[], %(revision)s::bigint[], %(resource_type)s::text[],
            %(resource_key)s::text[], %(document_hash)s::bytea[], %(prev_hash)s::bytea[], %(evidence_hash)s::bytea[],
            %(hash)s::bytea[], %(change)s::text[], %(subjects)s::text[], %(salt)s::bytea[], %(document)s::bytea[]
        ) AS made (seq, format, revision, resource_type, resource_key, document_hash, prev_hash, evidence_hash, hash,
                   change, subjects, salt, document)
    ), change AS (
        INSERT INTO change_log (revision, create_time, resource_type, change_type, environment, key, subjects)
        SELECT revision, %(create_time)s, resource_type, change, %(environment)s, resource_key, subjects::uuid[]
        FROM made
    ), entry AS (
        INSERT INTO audit_log (seq, format, revision, create_time, actor, action,
                               environment, resource_type, resource_key, document_hash, prev_hash,
                               evidence_hash, hash)
        SELECT seq, format, revision, %(create_time)s, %(actor)s, %(action)s,
               %(environment)s, resource_type, resource_key, document_hash, prev_hash,
               evidence_hash, hash
        FROM made
    ), document AS (
        INSERT INTO audit_documents (seq, salt, document) SELECT seq, salt, document FROM made
    ), head AS (
        UPDATE revision_head SET revision = %(head_revision)s, audit_seq = %(head_seq)s, audit_hash = %(head_hash)s
    )
    SELECT pg_notify(%(channel)s, %(head_revision)s::text)
"""
# What differs from one entry of a mutation to the next.
_OF_EACH = (
    *("seq", "format", "revision", "resource_type", "resource_key", "document_hash", "prev_hash", "evidence_hash"),
    *("hash", "change", "subjects", "salt", "document"),
)


def _written(head: Head, effect: Effect[Result], lines: Sequence[AuditLine]) -> Written[Result]:
    """Return what the caller learns; without a line, nothing was changed."""
    if not lines:
        return Written(result=effect.result, revision=head.revision - 1, anchor=None)
    return Written(result=effect.result, revision=lines[-1].revision, anchor=lines[-1].anchor)


def _record(conn: Connection, head: Head, intent: Intent, changes: Sequence[Change]) -> list[AuditLine]:
    """Write an audit entry and a change-log row for each change, and the new head; announce its revision.

    Returns:
        The lines to log.
    """
    lines: list[AuditLine] = []
    rows: list[dict[str, Any]] = []
    for change in changes:
        salt = secrets.token_bytes(SALT_BYTES)
        document = rfc8785.dumps({**change.document, "change_reason": intent.change_reason})
        entry = _entry(head, intent, change, hash_document(salt, document))
        line = AuditLine.of(entry)
        subjects = f"{{{','.join(map(str, change.subjects))}}}"
        more = {
            "hash": line.hash,
            "change": change.change.value,
            "subjects": subjects,
            "salt": salt,
            "document": document,
        }
        rows.append({**asdict(entry), **more})
        lines.append(line)
        head = replace(head, revision=head.revision + 1, audit_seq=head.audit_seq + 1, prev_hash=line.hash)
    last = rows[-1]
    columns = {name: [row[name] for row in rows] for name in _OF_EACH}
    new_head = {"head_revision": last["revision"], "head_seq": last["seq"], "head_hash": last["hash"]}
    conn.execute(_RECORD, {**last, **columns, **new_head, "channel": CHANNEL})
    return lines


def _entry(head: Head, intent: Intent, change: Change, document_hash: bytes) -> AuditEntry:
    return AuditEntry(
        seq=head.audit_seq,
        revision=head.revision,
        create_time=head.create_time,
        actor=intent.actor,
        action=intent.action,
        environment=_ENVIRONMENT,
        resource_type=change.resource.value,
        resource_key=change.key,
        document_hash=document_hash,
        prev_hash=head.prev_hash,
        evidence_hash=change.evidence_hash,
        format=FORMAT if change.evidence_hash is None else FORMAT_WITH_EVIDENCE,
    )
