"""The audit log in PostgreSQL: list, verify, read the head. Only `MutationRunner` writes entries."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, TypeAlias
from uuid import UUID

from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.rows import kwargs_row

from gatekeeper_grpc.domain.audit import (
    GENESIS,
    AuditAnchor,
    AuditEntry,
    AuditHead,
    DocumentedEntry,
    RecordedEntry,
    Redaction,
    hashed_time,
    read_document,
    redaction_line,
    subject_line,
)
from gatekeeper_grpc.domain.audit_verifier import Verification, verify_chain
from gatekeeper_grpc.domain.commands import AuditFilter
from gatekeeper_grpc.domain.errors import FailedPrecondition, ResourceExhausted
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.store.access_trace import AccessEvent, Page, recorded_page
from gatekeeper_grpc.store.postgres.database import Connection, Database, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read

ARCHIVE_ACTION = "ArchiveAuditLog"
# Documents are read in parts of so many bytes, or of one document.
_PART_BYTES = 1 << 20
# A verification keeps a connection and a core busy, which other calls need as well.
_MAX_VERIFICATIONS = 2
# A document may have 400 KB: so many rows are at most 40 MB. Other threads run between two fetches.
_FETCH_ROWS = 100
_FETCH_EVIDENCE_ROWS = 1_000
# In documents, every string that is a UUID is a subject id.
_SUBJECT_IDS = re.compile(rb'"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"')
_NAMED_BY_SUBJECT = frozenset({ResourceType.USER, ResourceType.SUBJECT})
# An entry without its document yet, and the size of the document, 0 if it was redacted.
_Found: TypeAlias = tuple[DocumentedEntry, int]
# A row that belongs to the entry in its first column.
_Row: TypeAlias = tuple[Any, ...]


class AuditStore:
    """Reads the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._verifying = threading.BoundedSemaphore(_MAX_VERIFICATIONS)

    @retry_lost_read
    def head(self) -> AuditHead:
        """Read the head of the log."""
        with self._database.read() as conn:
            return read_head(conn)

    @retry_lost_read
    def list(self, wanted: AuditFilter, paged: Callable[[Iterable[DocumentedEntry]], Page]) -> Page:
        """Read entries, newest first, and return what `paged` makes of those that it takes; the others are not read."""
        with self._database.read_and_record() as conn:
            entries = _documented_in_parts(conn, _find(conn, wanted))
            return recorded_page(conn, AccessEvent.AUDIT_ENTRIES_LISTED, entries, paged, subjects=_named)

    def verify(self, anchor: AuditAnchor | None = None) -> Iterator[Verification]:
        """Verify the whole log against its head and an external anchor.

        Yields progress and the result, see `verify_chain`; memory is bounded.

        Raises:
            ResourceExhausted: Two verifications are already running.
            FailedPrecondition: The anchor is of an archived entry.
        """
        with self._limited(), self._database.read() as conn:
            yield from verify_log(conn, anchor)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        if not self._verifying.acquire(blocking=False):
            raise ResourceExhausted("other callers are verifying the audit log; try again later", retry_after_s=5.0)
        try:
            yield
        finally:
            self._verifying.release()


# --- Start and head of the log ----------------------------------------------------------------------------------------

_HEAD = """
    SELECT audit_seq, audit_hash, revision FROM revision_head
"""


def read_head(conn: Connection) -> AuditHead:
    """Read the head of the log, within a transaction."""
    seq, audit_hash, revision = one(conn.execute(_HEAD))
    return AuditHead(anchor=AuditAnchor(seq=seq, hash=audit_hash), revision=revision)


_NEWEST_ARCHIVE = """
    SELECT last_seq, last_hash FROM audit_archives ORDER BY last_seq DESC LIMIT 1
"""

_NEWEST_ARCHIVE_DOCUMENT = """
    SELECT d.document FROM audit_log a JOIN audit_documents d USING (seq)
    WHERE a.action = %(action)s ORDER BY a.seq DESC LIMIT 1
"""


def read_start(conn: Connection) -> AuditAnchor:
    """Read the anchor that the first entry is chained to: the last archived entry, or the genesis.

    The table of archives counts only if the log itself records the archive, in an entry that is verified like any
    other. Otherwise an attacker could delete the first entries and add a row to that table.
    """
    row = conn.execute(_NEWEST_ARCHIVE).fetchone()
    if row is None:
        return GENESIS
    archived = AuditAnchor(seq=row[0], hash=row[1])
    return archived if _recorded_archive(conn) == archived else GENESIS


def _recorded_archive(conn: Connection) -> AuditAnchor | None:
    row = conn.execute(_NEWEST_ARCHIVE_DOCUMENT, {"action": ARCHIVE_ACTION}).fetchone()
    if row is None:
        return None
    try:
        document = read_document(row[0])
        return AuditAnchor(seq=document["last_seq"], hash=bytes.fromhex(document["last_hash"]))
    except (ValueError, TypeError, KeyError):
        return None


# --- Verifying --------------------------------------------------------------------------------------------------------

RECORDED_ENTRIES = """
    SELECT a.seq, a.format, a.revision, a.create_time, a.actor, a.action, a.environment, a.resource_type,
           a.resource_key, a.document_hash, a.prev_hash, a.hash, d.salt, d.document, a.evidence_hash
    FROM audit_log a LEFT JOIN audit_documents d ON d.seq = a.seq
    WHERE a.seq > %(after)s AND a.seq <= %(up_to)s
    ORDER BY a.seq
"""
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
# Entries start at 1, so an entry 0 would be forged.
_BEFORE_ALL = -1
_AFTER_ALL = 2**63 - 1


def recorded_entries(conn: Connection, *, after: int = _BEFORE_ALL, up_to: int = _AFTER_ALL) -> Iterator[RecordedEntry]:
    """Stream entries in order, with their evidence, within a transaction; at most 100 are in memory at a time."""
    return with_evidence(conn, rows_of_log(conn, after=after, up_to=up_to), after=after)


def rows_of_log(conn: Connection, *, after: int = _BEFORE_ALL, up_to: int = _AFTER_ALL) -> Iterator[RecordedEntry]:
    """Stream entries as `recorded_entries` does, without their evidence."""
    with conn.cursor(name="audit_log", row_factory=lambda _: lambda row: RecordedEntry(*row)) as cursor:
        cursor.adapters.register_loader("timestamptz", _HashedTimeLoader)
        cursor.itersize = _FETCH_ROWS
        yield from cursor.execute(RECORDED_ENTRIES, {"after": after, "up_to": up_to}, binary=True)


# The first column is the entry to which a row belongs.
_ERASURES: LiteralString = """
    SELECT erasure_seq, seq, old_hash, new_hash FROM audit_redactions
    WHERE erasure_seq > %(after)s ORDER BY erasure_seq, seq
"""

_REDACTIONS: LiteralString = """
    SELECT seq, erasure_seq, old_hash, new_hash FROM audit_redactions
    WHERE seq > %(after)s ORDER BY seq, erasure_seq
"""

# `is_known` is null for a person who was erased.
_COMMITMENTS: LiteralString = """
    SELECT c.seq, c.subject_id::text, c.commitment, CASE WHEN s.subject_id IS NOT NULL THEN
           coalesce(sha256(s.salt || convert_to(s.user_id, 'UTF8')) = c.commitment, false) END AS is_known
    FROM subject_commitments c LEFT JOIN subjects s USING (subject_id)
    WHERE c.seq > %(after)s ORDER BY c.seq, c.subject_id
"""


def with_evidence(
    conn: Connection, entries: Iterable[RecordedEntry], *, after: int = _BEFORE_ALL
) -> Iterator[RecordedEntry]:
    """Add to entries, in order, what the database holds in addition to the log; within a transaction.

    Args:
        conn: The database.
        entries: In order of `seq`.
        after: Leave out what belongs to entries up to this one.
    """
    erasures = _RowsByEntry(_rows_of_evidence(conn, "erasures", _ERASURES, after))
    redactions = _RowsByEntry(_rows_of_evidence(conn, "redactions", _REDACTIONS, after))
    commitments = _RowsByEntry(_rows_of_evidence(conn, "commitments", _COMMITMENTS, after))
    for entry in entries:
        found = [rows.of(entry.seq) for rows in (erasures, redactions, commitments)]
        yield _with(entry, *found) if any(found) else entry


def _rows_of_evidence(conn: Connection, name: str, query: LiteralString, after: int) -> Iterator[_Row]:
    with conn.cursor(name=name) as cursor:
        cursor.itersize = _FETCH_EVIDENCE_ROWS
        yield from cursor.execute(query, {"after": after}, binary=True)


class _RowsByEntry:
    """Rows that belong to entries, in the order of the entries."""

    def __init__(self, rows: Iterator[_Row]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def of(self, seq: int) -> list[_Row]:
        """Take the rows of an entry, and all before it: these belong to no entry, so this one does not match them."""
        taken = []
        while self._next is not None and self._next[0] <= seq:
            taken.append(self._next)
            self._next = next(self._rows, None)
        return taken


def _with(entry: RecordedEntry, erasure: list[_Row], redactions: list[_Row], met: list[_Row]) -> RecordedEntry:
    lines = [redaction_line(seq, Redaction(erasure_seq, *hashes)) for erasure_seq, seq, *hashes in erasure]
    lines += [subject_line(subject_id, commitment) for _, subject_id, commitment, _ in met]
    return entry._replace(
        evidence=tuple(lines),
        redactions=tuple(Redaction(*redaction) for _, *redaction in redactions),
        known_subjects=sum(is_known is True for *_, is_known in met),
        altered_subjects=tuple(subject_id for _, subject_id, _, is_known in met if is_known is False),
    )


class _HashedTimeLoader(Loader):
    """Reads a time as the text that is hashed; several times faster than to_char.

    A time outside Python's range, such as "infinity", can only be forged: it becomes a text that no time has.
    """

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        microseconds = int.from_bytes(bytes(data), signed=True)
        try:
            return hashed_time(_POSTGRES_EPOCH + timedelta(microseconds=microseconds))
        except OverflowError:
            return f"{microseconds} microseconds after {_POSTGRES_EPOCH}"


def verify_log(conn: Connection, anchor: AuditAnchor | None = None) -> Iterator[Verification]:
    """Verify the log that a transaction sees, see `AuditStore.verify`.

    Raises:
        FailedPrecondition: The anchor is of an archived entry.
    """
    start = read_start(conn)
    check_not_archived(anchor, start)
    # From the first row on, wherever the log should begin: a row before that is forged.
    entries = with_evidence(conn, rows_of_log(conn), after=start.seq)
    return verify_chain(entries, start=start, head=read_head(conn).anchor, anchor=anchor, subjects=count_subjects(conn))


def count_subjects(conn: Connection) -> int:
    """Count the people who have a subject id, within a transaction."""
    (subjects,) = one(conn.execute("SELECT count(*) FROM subjects"))
    return int(subjects)


def check_not_archived(anchor: AuditAnchor | None, start: AuditAnchor) -> None:
    """Refuse an anchor that only the archives can confirm.

    Raises:
        FailedPrecondition: The anchor is of an archived entry.
    """
    if anchor is not None and anchor.seq < start.seq:
        raise FailedPrecondition(
            f"the anchor is of entry {anchor.seq}; entries up to {start.seq} are archived: verify with the archives,"
            " by `gatekeeper audit verify --archives`",
            reason="AUDIT_ENTRY_ARCHIVED",
            metadata={"seq": str(anchor.seq), "last_archived_seq": str(start.seq)},
        )


# --- Listing ----------------------------------------------------------------------------------------------------------


def _found_from_row(*, hash: bytes, document_bytes: int | None, **fields: Any) -> _Found:  # noqa: A002 - the column
    entry = DocumentedEntry(entry=AuditEntry(**fields), hash=hash, salt=b"", document=None, users={})
    return entry, document_bytes or 0


_SELECT_ENTRIES = """
    SELECT a.seq, a.format, a.revision, a.create_time, a.actor, a.action, a.environment, a.resource_type,
           a.resource_key, a.document_hash, a.prev_hash, a.evidence_hash, a.hash,
           (SELECT octet_length(d.document) FROM audit_documents d WHERE d.seq = a.seq) AS document_bytes
    FROM audit_log a
"""

# Each uses an index of its own. Revisions rise with seq, so their bounds are found once, and the log is read backwards
# between them. Times may not rise, because a clock can be set back.
_CONDITIONS: Mapping[str, LiteralString] = {
    "before": "a.seq < %(before)s",
    # A name alone stands for every admin user who has had it: "#" and the id follow it in the entry.
    "actor": """(a.actor = %(actor)s OR (
        a.actor >= %(actor)s::text || '#' AND a.actor < %(actor)s::text || '$'
        AND substr(a.actor, length(%(actor)s::text) + 2) ~ '^([0-9]+|at_[0-9a-f]{20})$'))""",
    "action": "a.action = %(action)s",
    "resource_type": "a.resource_type = %(resource_type)s",
    "resource_key": "a.resource_key = %(resource_key)s",
    "start_time": "a.create_time >= %(start_time)s",
    "end_time": "a.create_time < %(end_time)s",
    "start_revision": """a.seq >= (
        SELECT seq FROM audit_log WHERE revision >= %(start_revision)s ORDER BY revision LIMIT 1)""",
    "end_revision": """a.seq <= (
        SELECT seq FROM audit_log WHERE revision <= %(end_revision)s ORDER BY revision DESC LIMIT 1)""",
}


def list_query(wanted: AuditFilter) -> tuple[LiteralString, dict[str, object]]:
    """Return the query for a filter, with the given conditions only, and its parameters."""
    given = {name: value for name in _CONDITIONS if (value := getattr(wanted, name)) not in ("", None)}
    conditions: LiteralString = " AND ".join([_CONDITIONS[name] for name in given])
    where: LiteralString = "WHERE " + conditions if given else ""
    return _SELECT_ENTRIES + where + " ORDER BY a.seq DESC LIMIT %(limit)s", {**given, "limit": wanted.limit}


def _find(conn: Connection, wanted: AuditFilter) -> list[_Found]:
    with conn.cursor(row_factory=kwargs_row(_found_from_row)) as cursor:
        return cursor.execute(*list_query(wanted)).fetchall()


def _documented_in_parts(conn: Connection, found: Sequence[_Found]) -> Iterator[DocumentedEntry]:
    """Read the documents of entries, in the order of these, as they are asked for."""
    while found:
        count = _fitting([size for _, size in found])
        yield from _documented(conn, found[:count])
        found = found[count:]


def _fitting(sizes: Sequence[int]) -> int:
    """Return how many of the first documents fit into a part; at least one."""
    room = _PART_BYTES
    for count, size in enumerate(sizes):
        room -= size
        if room < 0:
            return max(1, count)
    return len(sizes)


_DOCUMENTS = """
    SELECT seq, salt, document FROM audit_documents WHERE seq = ANY(%(seqs)s)
"""

_REDACTIONS_OF = """
    SELECT seq, erasure_seq, old_hash, new_hash FROM audit_redactions
    WHERE seq = ANY(%(seqs)s) ORDER BY seq, erasure_seq
"""


def _documented(conn: Connection, found: Iterable[_Found]) -> list[DocumentedEntry]:
    entries = {entry.entry.seq: entry for entry, _ in found}
    for seq, salt, document in conn.execute(_DOCUMENTS, {"seqs": list(entries)}):
        entries[seq] = replace(entries[seq], salt=salt, document=document)
    for seq, erasure_seq, old_hash, new_hash in conn.execute(_REDACTIONS_OF, {"seqs": list(entries)}):
        redaction = Redaction(erasure_seq=erasure_seq, old_hash=old_hash, new_hash=new_hash)
        entries[seq] = replace(entries[seq], redactions=(*entries[seq].redactions, redaction))
    return with_users(conn, entries.values())


def documented_entries(conn: Connection, seqs: Sequence[int]) -> list[DocumentedEntry]:
    """Read entries by their seq, within a transaction, oldest first."""
    with conn.cursor(row_factory=kwargs_row(_found_from_row)) as cursor:
        found = cursor.execute(_SELECT_ENTRIES + "WHERE a.seq = ANY(%(seqs)s) ORDER BY a.seq", {"seqs": list(seqs)})
        return _documented(conn, found.fetchall())


_USERS = """
    SELECT subject_id::text, user_id FROM subjects WHERE subject_id = ANY(%(subjects)s::uuid[])
"""


def with_users(conn: Connection, entries: Iterable[DocumentedEntry]) -> list[DocumentedEntry]:
    """Add the users that each entry names, with one query for all of them."""
    named = [(entry, _subjects_of(entry)) for entry in entries]
    wanted = {subject for _, subjects in named for subject in subjects}
    users: dict[str, str] = dict(conn.execute(_USERS, {"subjects": list(wanted)}).fetchall()) if wanted else {}
    return [
        replace(entry, users={subject: users[subject] for subject in subjects & users.keys()})
        for entry, subjects in named
    ]


def _named(documented: DocumentedEntry) -> list[UUID]:
    return [UUID(subject) for subject in documented.users]


def _subjects_of(documented: DocumentedEntry) -> set[str]:
    """Find the subject ids of an entry: every UUID string of its document, and its key if the resource is a user."""
    text = documented.document or b""
    if documented.entry.resource_type in _NAMED_BY_SUBJECT:
        text += f'"{documented.entry.resource_key}"'.encode()
    return {match.decode() for match in _SUBJECT_IDS.findall(text)}
