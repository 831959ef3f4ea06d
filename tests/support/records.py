"""What the database itself says happened: the audit log with its chain of hashes, read by SQL and checked offline."""

from collections.abc import Sequence

import psycopg
from psycopg.rows import class_row, scalar_row

from gatekeeper_grpc.domain.audit import GENESIS_HASH, AuditEntry, hash_document, hash_entry

_ENTRIES = """
    SELECT seq, format, revision, create_time, actor, action, environment, resource_type, resource_key,
           document_hash, prev_hash, evidence_hash
    FROM audit_log ORDER BY seq
"""


def chained_entries(dsn: str) -> list[AuditEntry]:
    """The audit log, oldest first, once it is proven to be one unbroken chain from the first entry to the head."""
    # Hashes are made of times in UTC, wherever the log is read.
    with psycopg.connect(dsn, options="-c timezone=UTC") as conn:
        entries = conn.cursor(row_factory=class_row(AuditEntry)).execute(_ENTRIES).fetchall()
        hashes = _column(conn, "SELECT hash FROM audit_log ORDER BY seq")
        head = conn.execute("SELECT audit_seq, audit_hash FROM revision_head").fetchone()
        documents = conn.execute("SELECT salt, document FROM audit_documents ORDER BY seq").fetchall()
    assert [hash_entry(entry) for entry in entries] == hashes
    assert [entry.prev_hash for entry in entries] == [GENESIS_HASH, *hashes][: len(entries)]
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.document_hash for entry in entries] == [hash_document(*document) for document in documents]
    assert head == (len(entries), [GENESIS_HASH, *hashes][-1])
    return entries


def flag_revisions(dsn: str) -> dict[str, int]:
    """At which revision each flag was written last, by key."""
    with psycopg.connect(dsn) as conn:
        return dict(conn.execute("SELECT key, revision FROM feature_flags").fetchall())


def _column(conn: psycopg.Connection[tuple[object, ...]], query: str) -> Sequence[bytes]:
    return conn.cursor(row_factory=scalar_row).execute(query.encode()).fetchall()
