"""How fast the audit log is verified: `python -m bench.audit [entries]`.

First it runs the pure verifier on entries in memory, as for archives. Then it verifies a log in a PostgreSQL of its
own, streamed through a server-side cursor. Each document holds a flag before and after a change, about 600 bytes.
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import rfc8785

from gatekeeper_grpc.domain.audit import GENESIS_HASH, RecordedEntry, hash_document, hash_fields, hashed_time
from gatekeeper_grpc.domain.audit_verifier import Verification, verify_chain
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.postgres.database import Database

_COPY_ENTRIES = """
    COPY audit_log (seq, format, revision, create_time, actor, action, environment, resource_type, resource_key,
                    document_hash, prev_hash, hash) FROM STDIN
"""
_COPY_DOCUMENTS = "COPY audit_documents (seq, salt, document) FROM STDIN"
_SET_HEAD = "UPDATE revision_head SET revision = %(seq)s, audit_seq = %(seq)s, audit_hash = %(hash)s"


def made_entries(count: int) -> Iterator[RecordedEntry]:
    """Make entries with a valid chain."""
    now, salt = hashed_time(datetime.now(UTC)), bytes(16)
    flag: dict[str, Any] = {
        "key": "new_checkout",
        "description": FlagConfig(key="new_checkout").description or "A flag to measure with.",
        "tags": ["checkout", "payments"],
        "segment_targets": [{"segment_key": "beta-testers", "variant": "on"}],
        "owner": "team-payments",
        "rollout_percentage": 30,
    }
    document = rfc8785.dumps({"before": flag, "after": flag, "change_reason": "a step of the rollout " * 6})
    document_hash, prev_hash = hash_document(salt, document), GENESIS_HASH
    for seq in range(1, count + 1):
        fields = (seq, 1, seq, now, "admin:bench", "UpdateFlag", "", "flag", "new_checkout", document_hash, prev_hash)
        prev_hash = hash_fields(*fields)
        yield RecordedEntry(*fields, prev_hash, salt, document)


def fill(dsn: str, entries: Iterable[RecordedEntry]) -> None:
    """Write the entries and the head as mutations would have, then VACUUM ANALYZE."""
    with psycopg.connect(dsn) as conn:
        entries = list(entries)
        with conn.cursor().copy(_COPY_ENTRIES) as copy:
            for entry in entries:
                copy.write_row(entry[:-2])
        with conn.cursor().copy(_COPY_DOCUMENTS) as copy:
            for entry in entries:
                copy.write_row((entry.seq, entry.salt, entry.document))
        conn.execute(_SET_HEAD, {"seq": entries[-1].seq, "hash": entries[-1].hash})
        conn.commit()
        conn.autocommit = True
        conn.execute("VACUUM ANALYZE audit_log, audit_documents")


def report(what: str, verifying: Iterable[Verification], count: int) -> None:
    """Run a verification to its end and print its speed."""
    began = time.perf_counter()
    *_, last = verifying
    took_s = time.perf_counter() - began
    assert last.complete, last
    print(f"  {what:<12} {count / took_s:>9,.0f} entries/s   ({took_s:.2f} s)")


def main(count: int = 200_000) -> None:
    """Measure and print."""
    print(f"{count:,} entries verified (goal: 50,000 entries/s):")
    entries = list(made_entries(count))
    report("in memory", verify_chain(entries), count)
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        Migrator(postgres.dsn).up()
        fill(postgres.dsn, entries)
        with closing(Database(postgres.dsn)) as database:
            database.open()
            report("in database", AuditStore(database).verify(), count)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
