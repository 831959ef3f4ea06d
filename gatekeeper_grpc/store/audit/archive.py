"""Retention: moves the oldest partitions of the audit log to files, which stay verifiable as one chain with the rest.

An archive is a file of JSON lines, one entry with its document each, next to a file with its SHA-256 in the format of
`sha256sum -c`. The transaction that drops a partition records that in the log itself.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, LiteralString, TypeAlias

from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import class_row

from gatekeeper_grpc.domain.audit import AuditAnchor, RecordedEntry, Redaction
from gatekeeper_grpc.domain.audit_verifier import Verification, verify_chain
from gatekeeper_grpc.domain.errors import FailedPrecondition, Unavailable
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, ResourceType
from gatekeeper_grpc.durable_file import replace_file
from gatekeeper_grpc.store.audit.log import (
    ARCHIVE_ACTION,
    count_subjects,
    read_head,
    read_start,
    recorded_entries,
    rows_of_log,
    verify_log,
    with_evidence,
)
from gatekeeper_grpc.store.mutations import NOTHING, Effect, Head, MutationRunner
from gatekeeper_grpc.store.postgres.database import Connection, Database, one
from gatekeeper_grpc.store.postgres.retries import retry_conflicts, retry_lost_read

_LOCK_TIMEOUT = "2s"
_FILE_MODE = 0o666
_DELETED_AT_ONCE = 10_000
_HEX_FIELDS = ("document_hash", "prev_hash", "hash", "salt", "evidence_hash")
# Fields that few entries have, and that archives of earlier releases lack; a line without one has its default.
_RARE_FIELDS = ("evidence_hash", "evidence", "redactions")
# What was known about people when the file was written says nothing later.
_UNKEPT_FIELDS = ("known_subjects", "altered_subjects")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFile:
    """A file with the entries from `first_seq` to `last_seq`; `sha256` is the hash of the whole file."""

    path: Path
    first_seq: int
    last_seq: int
    sha256: bytes


# --- Files ------------------------------------------------------------------------------------------------------------


def read_archives(folder: Path) -> list[ArchiveFile]:
    """Find the archives in a folder, oldest first.

    Raises:
        FailedPrecondition: A file does not match its checksum.
    """
    return [_checked_file(path) for path in sorted(folder.glob("audit-*.jsonl"))]


def verify_archives(files: Iterable[ArchiveFile], anchor: AuditAnchor | None = None) -> Iterator[Verification]:
    """Verify archived entries from the first of the log on, without a database; see `verify_chain`."""
    return verify_chain(_entries_of(files), anchor=anchor)


def verify_with_archives(
    database: Database, files: Sequence[ArchiveFile], anchor: AuditAnchor | None = None
) -> Iterator[Verification]:
    """Verify archived entries and the entries in the database as one chain.

    Raises:
        FailedPrecondition: An archive is missing, or is not the one that the database has recorded.
    """
    with database.read() as conn:
        _require_archives(conn, files)
        head = read_head(conn).anchor
        # Not the evidence in the files: what is known of people now is in the database.
        entries = with_evidence(conn, chain(_entries_of(files), rows_of_log(conn)))
        yield from verify_chain(entries, head=head, anchor=anchor, subjects=count_subjects(conn))


def _entries_of(files: Iterable[ArchiveFile]) -> Iterator[RecordedEntry]:
    return chain.from_iterable(_read_entries(file.path) for file in files)


def _read_entries(path: Path) -> Iterator[RecordedEntry]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield _entry_from_line(line)
            except (ValueError, TypeError, AttributeError, KeyError):
                raise FailedPrecondition(f"line {number} of {path} is not an audit entry") from None


def _line_from_entry(entry: RecordedEntry) -> bytes:
    fields: dict[str, Any] = entry._asdict()
    for name in _HEX_FIELDS:
        fields[name] = fields[name] and fields[name].hex()
    # As text, for people; bytes that are not UTF-8 survive, so that verification finds them.
    fields["document"] = entry.document and entry.document.decode(errors="surrogateescape")
    fields["redactions"] = [(at, old.hex(), new.hex()) for at, old, new in entry.redactions]
    for name in (*_UNKEPT_FIELDS, *(name for name in _RARE_FIELDS if not fields[name])):
        del fields[name]
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _entry_from_line(line: bytes) -> RecordedEntry:
    fields = json.loads(line)
    for name in _HEX_FIELDS:
        value = fields.get(name)
        fields[name] = None if value is None else bytes.fromhex(value)
    document = fields["document"]
    fields["document"] = None if document is None else document.encode(errors="surrogateescape")
    fields["evidence"] = tuple(fields.get("evidence", ()))
    fields["redactions"] = tuple(
        Redaction(erasure_seq=at, old_hash=bytes.fromhex(old), new_hash=bytes.fromhex(new))
        for at, old, new in fields.get("redactions", ())
    )
    return RecordedEntry(**fields)


def _checked_file(path: Path) -> ArchiveFile:
    digest = _sha256_of(path)
    try:
        expected = _checksum_path(path).read_text(encoding="utf-8")
        _, first, last = path.stem.split("-")
        file = ArchiveFile(path=path, first_seq=int(first), last_seq=int(last), sha256=digest)
    except (OSError, ValueError) as exc:
        raise FailedPrecondition(f"{path} is not an archive with a checksum file next to it") from exc
    if expected != _checksum_line(path, digest):
        raise FailedPrecondition(f"{path} is not the file that was archived: its SHA-256 is another one")
    return file


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _checksum_line(path: Path, digest: bytes) -> str:
    return f"{digest.hex()}  {path.name}\n"


def _sha256_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


_ARCHIVES = """
    SELECT first_seq, last_seq, sha256 FROM audit_archives ORDER BY last_seq
"""


def _require_archives(conn: Connection, files: Iterable[ArchiveFile]) -> None:
    known = {(file.first_seq, file.last_seq): file.sha256 for file in files}
    for first_seq, last_seq, sha256 in conn.execute(_ARCHIVES):
        if known.get((first_seq, last_seq)) != sha256:
            raise FailedPrecondition(f"the archive of entries {first_seq} to {last_seq} is missing, or is another file")


# --- Moving -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Partition:
    name: str
    lower: int
    first_seq: int
    last_seq: int


# How many documents the entries of a partition have, and how often these were redacted.
_Contents: TypeAlias = tuple[int, int]


class AuditArchive:
    """Moves partitions to files in a folder, oldest first.

    Args:
        database: A database, as the role that owns the schema.
        folder: Created if missing. Keep it: without these files, the rest of the log can be verified only from their
            end on.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._mutations = MutationRunner(database, _NoSealer())

    def move(self, *, before: int | None = None, keep_partitions: int | None = None) -> Iterator[ArchiveFile]:
        """Archive full partitions, and yield each when it is done; may be interrupted at any time.

        Args:
            before: Archive only partitions whose entries all come before this one.
            keep_partitions: Keep so many of the newest partitions with entries.

        Raises:
            FailedPrecondition: The log does not verify: an archive must not hide what is missing from it.
            Unavailable: Another session reads the log for too long; the partition stays.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._delete_archived_documents()
        self._require_verified()
        for partition in self._chosen(before, keep_partitions):
            yield self._move(partition)

    @retry_lost_read
    def _chosen(self, before: int | None, keep_partitions: int | None) -> list[_Partition]:
        with self._database.read() as conn:
            head_seq = read_head(conn).anchor.seq
            in_use = [partition for partition in _partitions(conn) if partition.first_seq <= head_seq]
        chosen = in_use if keep_partitions is None else in_use[:-keep_partitions]
        last_seq = head_seq - 1 if before is None else min(before, head_seq) - 1
        return [partition for partition in chosen if partition.last_seq <= last_seq]

    @retry_lost_read
    def _require_verified(self) -> None:
        """Verify the whole log: only later entries can account for a document that is missing from a partition."""
        with self._database.read() as conn:
            *_, end = verify_log(conn)
        if end.faulty is not None:
            raise FailedPrecondition(f"nothing was dropped: {end.faulty.message}")

    def _move(self, partition: _Partition) -> ArchiveFile:
        path = self._folder / f"audit-{partition.first_seq:019}-{partition.last_seq:019}.jsonl"
        contents = self._export(partition, path)
        file = _checked_file(path)
        self._drop(partition, file, self._verified(file), contents)
        self._delete_archived_documents()
        return file

    @retry_lost_read
    def _export(self, partition: _Partition, path: Path) -> _Contents:
        with self._database.read() as conn:
            contents = _contents(conn, partition)
            entries = recorded_entries(conn, after=partition.lower - 1, up_to=partition.last_seq)
            replace_file(path, map(_line_from_entry, entries), mode=_FILE_MODE)
        replace_file(_checksum_path(path), [_checksum_line(path, _sha256_of(path)).encode()], mode=_FILE_MODE)
        return contents

    @retry_lost_read
    def _verified(self, file: ArchiveFile) -> Verification:
        """Verify a file on disk, from the start of the log in the database, and return the final report."""
        with self._database.read() as conn:
            start = read_start(conn)
        *_, end = verify_chain(_read_entries(file.path), start=start)
        if end.faulty is not None:
            raise FailedPrecondition(f"nothing was dropped: {end.faulty.message}")
        if (start.seq + 1, end.verified.seq) != (file.first_seq, file.last_seq):
            raise FailedPrecondition(f"nothing was dropped: {file.path} does not hold all entries of its partition")
        return end

    def _drop(self, partition: _Partition, file: ArchiveFile, end: Verification, contents: _Contents) -> None:
        """Record the archive in its table and in the log, and drop the partition, in one transaction."""

        def act(conn: Connection, head: Head) -> Effect[None]:
            _lock_log(conn)
            if _contents(conn, partition) != contents:
                file.path.unlink()
                raise Unavailable("a document was redacted while it was being archived; try again")
            row = {
                "first_seq": file.first_seq,
                "last_seq": file.last_seq,
                "last_hash": end.verified.hash,
                "sha256": file.sha256,
            }
            conn.execute(_INSERT_ARCHIVE, {**row, "create_time": head.create_time})
            conn.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(partition.name)))
            document = {**row, "last_hash": end.verified.hash.hex(), "sha256": file.sha256.hex()}
            change = Change(
                resource=ResourceType.INSTALLATION, key="audit_log", change=ChangeType.UPDATED, document=document
            )
            return Effect(result=None, preview=None, change=change)

        intent = Intent(caller=None, action=ARCHIVE_ACTION)
        self._mutations.mutate(intent, act, codec=NOTHING, pipelined=False)

    @retry_conflicts
    def _delete_archived_documents(self) -> None:
        """Delete the documents of dropped partitions, in small transactions."""
        deleted = _DELETED_AT_ONCE
        while deleted == _DELETED_AT_ONCE:
            with self._database.write() as conn:
                last_seq = read_start(conn).seq
                deleted = conn.execute(_DELETE_DOCUMENTS, {"last_seq": last_seq, "limit": _DELETED_AT_ONCE}).rowcount


# `first_seq`: the first entry that a partition can hold. Entries are numbered from 1.
_PARTITIONS: LiteralString = r"""
    SELECT name, bounds[1]::bigint AS lower, greatest(bounds[1]::bigint, 1) AS first_seq,
           bounds[2]::bigint - 1 AS last_seq
    FROM (
        SELECT c.relname AS name,
               regexp_match(pg_get_expr(c.relpartbound, c.oid), '\(''?(\d+)''?\) TO \(''?(\d+)') AS bounds
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'audit_log'::regclass
    ) partition
    ORDER BY lower
"""


def _partitions(conn: Connection) -> list[_Partition]:
    with conn.cursor(row_factory=class_row(_Partition)) as cursor:
        return cursor.execute(_PARTITIONS).fetchall()


def _lock_log(conn: Connection) -> None:
    """Wait at most 2 s for readers of the log, because all writers wait for this lock."""
    conn.execute("SELECT set_config('lock_timeout', %(timeout)s, true)", {"timeout": _LOCK_TIMEOUT})
    try:
        conn.execute("LOCK TABLE audit_log IN ACCESS EXCLUSIVE MODE")
    except pg.LockNotAvailable as exc:
        raise Unavailable("another session reads the audit log, possibly to verify it; try again later") from exc


_CONTENTS = """
    SELECT (SELECT count(*) FROM audit_documents WHERE seq BETWEEN %(first_seq)s AND %(last_seq)s),
           (SELECT count(*) FROM audit_redactions WHERE seq BETWEEN %(first_seq)s AND %(last_seq)s)
"""


def _contents(conn: Connection, partition: _Partition) -> _Contents:
    contents: _Contents = one(
        conn.execute(_CONTENTS, {"first_seq": partition.first_seq, "last_seq": partition.last_seq})
    )
    return contents


_INSERT_ARCHIVE = """
    INSERT INTO audit_archives (first_seq, last_seq, last_hash, sha256, create_time)
    VALUES (%(first_seq)s, %(last_seq)s, %(last_hash)s, %(sha256)s, %(create_time)s)
"""

_DELETE_DOCUMENTS = """
    DELETE FROM audit_documents WHERE seq IN (
        SELECT seq FROM audit_documents WHERE seq <= %(last_seq)s ORDER BY seq LIMIT %(limit)s)
"""


class _NoSealer:
    """For a mutation runner whose mutations have no request id, and so no result to seal."""

    def seal(self, plain: bytes) -> bytes:  # noqa: ARG002
        raise AssertionError("archiving stores no results")

    def open(self, sealed: bytes) -> bytes:  # noqa: ARG002
        raise AssertionError("archiving stores no results")
