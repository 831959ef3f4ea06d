"""Whatever a superuser does to the audit log, verification names the first bad entry.

Each attack is made with all triggers off, in a transaction that is rolled back.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from gatekeeper_grpc.domain.audit import AuditAnchor, RecordedEntry, hash_document, hash_fields
from gatekeeper_grpc.domain.audit_verifier import AuditFault, Verification
from gatekeeper_grpc.domain.commands import FlagUpdate
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.store.audit.log import read_head, recorded_entries, verify_log
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Connection, Database
from tests.support.databases import new_database
from tests.support.servers import KEYS

pytestmark = pytest.mark.promise("D8")

ENTRIES = 300
ATTACKS = 100
SEED = 20261123

Found = tuple[AuditFault, int]


@pytest.fixture(scope="module")
def dsn(postgres: str) -> Iterator[str]:
    """The DSN of a database with an audit log of 300 entries, each with another document."""
    with new_database(postgres) as dsn:
        database = Database(dsn)
        database.open()
        _write_log(FlagStore(database, MutationRunner(database, KEYS.data)))
        database.close()
        yield dsn


def _write_log(flags: FlagStore) -> None:
    flags.create(FlagConfig(key="ramp"), Intent(caller=None, action="CreateFlag"))
    for step in range(ENTRIES - 1):
        update = FlagUpdate(key="ramp", changes={"description": f"step {step}"})
        flags.update(update, Intent(caller=None, action="UpdateFlag"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A log, and the entries it had, in the hands of a superuser."""

    conn: Connection
    entries: list[RecordedEntry]
    choice: random.Random

    @property
    def anchor(self) -> AuditAnchor:
        """What was known outside of the log before it was attacked."""
        last = self.entries[-1]
        return AuditAnchor(seq=last.seq, hash=last.hash)

    def run(self, text: LiteralString, **parameters: object) -> None:
        self.conn.execute(text, parameters)

    def set(self, seq: int, **fields: object) -> None:
        """Overwrite fields of an entry."""
        columns = sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in fields
        )
        update = sql.SQL("UPDATE audit_log SET {} WHERE seq = %(at)s").format(columns)
        self.conn.execute(update, {**fields, "at": seq})

    def entry(self, seq: int) -> RecordedEntry:
        return self.entries[seq - 1]

    def any_seq(self, first: int = 1, last: int = ENTRIES) -> int:
        return self.choice.randint(first, last)

    def two_seqs(self) -> tuple[int, int]:
        """Two places, the lower one first."""
        low, high = sorted(self.choice.sample(range(1, ENTRIES + 1), 2))
        return low, high


@pytest.fixture
def victim(dsn: str) -> Iterator[Victim]:
    with psycopg.connect(dsn, options="-c timezone=UTC") as conn:
        entries = list(recorded_entries(conn))
        for table in _TABLES:
            conn.execute(sql.SQL("ALTER TABLE {} DISABLE TRIGGER ALL").format(sql.Identifier(table)))
        yield Victim(conn=conn, entries=entries, choice=random.Random(SEED))
        conn.rollback()


_TABLES = (
    "audit_log",
    "audit_log_p000000",
    "audit_log_p000001",
    "audit_log_p000002",
    "audit_documents",
    "audit_redactions",
    "subject_commitments",
)


# --- Attacks: each returns what is to be found ------------------------------------------------------------------------

_FORGED: dict[str, object] = {
    "format": 2,
    "revision": 4_711,
    "create_time": "2001-02-03 04:05:06+00",
    "actor": "admin:eve",
    "action": "DeleteFlag",
    "environment": "prod",
    "resource_type": "segment",
    "resource_key": "other",
    "document_hash": bytes(32),
    "prev_hash": b"\xff" * 32,
    "hash": bytes(32),
}


def edit(victim: Victim) -> Found:
    seq, field = victim.any_seq(), victim.choice.choice(list(_FORGED))
    victim.set(seq, **{field: _FORGED[field]})
    return AuditFault.ENTRY_ALTERED, seq


def edit_by_a_microsecond(victim: Victim) -> Found:
    seq = victim.any_seq()
    victim.run("UPDATE audit_log SET create_time = create_time + interval '1 us' WHERE seq = %(at)s", at=seq)
    return AuditFault.ENTRY_ALTERED, seq


def date_at_infinity(victim: Victim) -> Found:
    seq = victim.any_seq()
    victim.set(
        seq, create_time=victim.choice.choice(["infinity", "-infinity", "2026-11-23 07:46:16 BC", "19999-01-01"])
    )
    return AuditFault.ENTRY_ALTERED, seq


def edit_and_rehash(victim: Victim) -> Found:
    seq = victim.any_seq(last=ENTRIES - 1)
    forged = _hashed(victim.entry(seq)._replace(actor="admin:eve"))
    victim.set(seq, actor=forged.actor, hash=forged.hash)
    return AuditFault.CHAIN_BROKEN, seq + 1


def edit_the_last_and_rehash(victim: Victim) -> Found:
    forged = _hashed(victim.entry(ENTRIES)._replace(actor="admin:eve"))
    victim.set(ENTRIES, actor=forged.actor, hash=forged.hash)
    return AuditFault.ANCHOR_MISMATCH, ENTRIES


def rewrite_to_the_end(victim: Victim) -> Found:
    seq = victim.any_seq()
    forged = _hashed(victim.entry(seq)._replace(actor="admin:eve"))
    victim.set(seq, actor=forged.actor, hash=forged.hash)
    for entry in victim.entries[seq:]:
        forged = _hashed(entry._replace(prev_hash=forged.hash))
        victim.set(entry.seq, prev_hash=forged.prev_hash, hash=forged.hash)
    victim.run("UPDATE revision_head SET audit_hash = %(hash)s", hash=forged.hash)
    return AuditFault.ANCHOR_MISMATCH, ENTRIES


def delete(victim: Victim) -> Found:
    first = victim.any_seq(last=ENTRIES - 1)
    last = victim.any_seq(first, min(first + 5, ENTRIES - 1))
    victim.run("DELETE FROM audit_log WHERE seq BETWEEN %(first)s AND %(last)s", first=first, last=last)
    return AuditFault.ENTRY_MISSING, last + 1


def delete_and_claim_an_archive(victim: Victim) -> Found:
    last = victim.any_seq(last=ENTRIES - 1)
    victim.run("DELETE FROM audit_log WHERE seq <= %(last)s", last=last)
    victim.run(
        "INSERT INTO audit_archives VALUES (1, %(last)s, %(hash)s, %(hash)s, now())",
        last=last,
        hash=victim.entry(last).hash,
    )
    return AuditFault.ENTRY_MISSING, last + 1


def delete_and_close_the_gap(victim: Victim) -> Found:
    seq = victim.any_seq(2, ENTRIES - 1)
    victim.run("DELETE FROM audit_log WHERE seq = %(at)s", at=seq)
    victim.run("UPDATE audit_log SET seq = -seq + 100000 WHERE seq > %(at)s", at=seq)
    victim.run("UPDATE audit_log SET seq = 100000 - seq - 1 WHERE seq > 1000")
    return AuditFault.ENTRY_ALTERED, seq


def cut_the_tail(victim: Victim) -> Found:
    seq = victim.any_seq()
    victim.run("DELETE FROM audit_log WHERE seq >= %(at)s", at=seq)
    return AuditFault.TAIL_CUT, seq


def cut_the_tail_with_the_head(victim: Victim) -> Found:
    seq = victim.any_seq(2)
    cut_to = victim.entry(seq - 1)
    victim.run("DELETE FROM audit_log WHERE seq >= %(at)s", at=seq)
    victim.run("UPDATE revision_head SET audit_seq = %(seq)s, audit_hash = %(hash)s", seq=cut_to.seq, hash=cut_to.hash)
    return AuditFault.TAIL_CUT, seq


def empty(victim: Victim) -> Found:
    victim.run("TRUNCATE audit_log")
    return AuditFault.TAIL_CUT, 1


def swap_rows(victim: Victim) -> Found:
    low, high = victim.two_seqs()
    victim.run("UPDATE audit_log SET seq = %(high)s + 1000 WHERE seq = %(low)s", low=low, high=high)
    victim.run("UPDATE audit_log SET seq = %(low)s WHERE seq = %(high)s", low=low, high=high)
    victim.run("UPDATE audit_log SET seq = %(high)s WHERE seq = %(high)s + 1000", low=low, high=high)
    return AuditFault.ENTRY_ALTERED, low


def put_in_an_entry(victim: Victim) -> Found:
    last = victim.entry(ENTRIES)
    forged = _hashed(last._replace(seq=ENTRIES + 1, prev_hash=last.hash, actor="admin:eve"))
    victim.run(_INSERT, **forged._asdict())
    return AuditFault.CHAIN_BROKEN, ENTRIES + 1


def put_in_an_entry_before_the_first(victim: Victim) -> Found:
    forged = _hashed(victim.entry(1)._replace(seq=0))
    victim.run(_INSERT, **forged._asdict())
    return AuditFault.CHAIN_BROKEN, 0


def edit_a_document(victim: Victim) -> Found:
    seq = victim.any_seq()
    victim.run("UPDATE audit_documents SET document = document || ' '::bytea WHERE seq = %(at)s", at=seq)
    return AuditFault.DOCUMENT_ALTERED, seq


def edit_a_salt(victim: Victim) -> Found:
    seq = victim.any_seq()
    victim.run("UPDATE audit_documents SET salt = 'canary' WHERE seq = %(at)s", at=seq)
    return AuditFault.DOCUMENT_ALTERED, seq


def edit_a_document_and_its_hash(victim: Victim) -> Found:
    seq = victim.any_seq()
    document = b'{"after":null}'
    victim.run("UPDATE audit_documents SET document = %(document)s WHERE seq = %(at)s", document=document, at=seq)
    victim.set(seq, document_hash=hash_document(victim.entry(seq).salt or b"", document))
    return AuditFault.ENTRY_ALTERED, seq


def delete_a_document(victim: Victim) -> Found:
    seq = victim.any_seq()
    victim.run("DELETE FROM audit_documents WHERE seq = %(at)s", at=seq)
    return AuditFault.DOCUMENT_MISSING, seq


def delete_a_document_and_claim_a_redaction(victim: Victim) -> Found:
    seq = victim.any_seq(last=ENTRIES - 1)
    victim.run("DELETE FROM audit_documents WHERE seq = %(at)s", at=seq)
    victim.run(
        "INSERT INTO audit_redactions VALUES (%(last)s, %(at)s, %(hash)s, %(hash)s)",
        at=seq,
        last=ENTRIES,
        hash=victim.entry(seq).document_hash,
    )
    return AuditFault.EVIDENCE_ALTERED, ENTRIES


def replace_a_document_and_claim_a_redaction_to_come(victim: Victim) -> Found:
    seq = victim.any_seq()
    victim.run(
        "INSERT INTO audit_redactions VALUES (%(later)s, %(at)s, %(old)s, sha256('\\x00'::bytea || '{}'::bytea))",
        at=seq,
        later=ENTRIES + 1,
        old=victim.entry(seq).document_hash,
    )
    victim.run("UPDATE audit_documents SET salt = '\\x00', document = '{}' WHERE seq = %(at)s", at=seq)
    return AuditFault.DOCUMENT_ALTERED, seq


def put_in_a_commitment(victim: Victim) -> Found:
    seq = victim.any_seq()
    victim.run(
        "INSERT INTO subject_commitments VALUES (%(at)s, gen_random_uuid(), sha256('eve'::bytea))",
        at=seq,
    )
    return AuditFault.EVIDENCE_ALTERED, seq


def swap_documents(victim: Victim) -> Found:
    low, high = victim.two_seqs()
    victim.run(
        "UPDATE audit_documents d SET salt = o.salt, document = o.document FROM audit_documents o"
        " WHERE (d.seq, o.seq) IN ((%(low)s, %(high)s), (%(high)s, %(low)s))",
        low=low,
        high=high,
    )
    return AuditFault.DOCUMENT_ALTERED, low


_ATTACKS: tuple[Callable[[Victim], Found], ...] = (
    edit,
    edit_by_a_microsecond,
    date_at_infinity,
    edit_and_rehash,
    edit_the_last_and_rehash,
    rewrite_to_the_end,
    delete,
    delete_and_claim_an_archive,
    delete_and_close_the_gap,
    cut_the_tail,
    cut_the_tail_with_the_head,
    empty,
    swap_rows,
    put_in_an_entry,
    put_in_an_entry_before_the_first,
    edit_a_document,
    edit_a_salt,
    edit_a_document_and_its_hash,
    swap_documents,
    delete_a_document,
    delete_a_document_and_claim_a_redaction,
    replace_a_document_and_claim_a_redaction_to_come,
    put_in_a_commitment,
)

_INSERT = """
    INSERT INTO audit_log (seq, format, revision, create_time, actor, action, environment, resource_type, resource_key,
                           document_hash, prev_hash, hash)
    VALUES (%(seq)s, %(format)s, %(revision)s, %(create_time)s, %(actor)s, %(action)s, %(environment)s,
            %(resource_type)s, %(resource_key)s, %(document_hash)s, %(prev_hash)s, %(hash)s)
"""


def _hashed(entry: RecordedEntry) -> RecordedEntry:
    return entry._replace(hash=hash_fields(*entry[:11]))


def concluded(conn: Connection, anchor: AuditAnchor | None) -> Verification:
    *_, last = verify_log(conn, anchor)
    return last


def test_the_log_as_the_ledger_wrote_it_is_verified(victim: Victim) -> None:
    report = concluded(victim.conn, victim.anchor)

    assert (report.complete, report.verified_entries, report.verified) == (True, ENTRIES, victim.anchor)
    assert read_head(victim.conn).anchor == victim.anchor


def test_after_each_of_100_superuser_attacks_the_first_bad_entry_is_found(victim: Victim) -> None:
    attacks = [_ATTACKS[turn % len(_ATTACKS)] for turn in range(ATTACKS)]
    missed: list[Any] = []
    for attack in attacks:
        with victim.conn.transaction(force_rollback=True):
            expected = attack(victim)
            faulty = concluded(victim.conn, victim.anchor).faulty
        if faulty is None or (faulty.fault, faulty.seq) != expected:
            missed.append((attack.__name__, expected, faulty))

    assert missed == []


def test_twin_without_an_anchor_a_log_rewritten_with_its_head_verifies(victim: Victim) -> None:
    for attack in (cut_the_tail_with_the_head, rewrite_to_the_end):
        with victim.conn.transaction(force_rollback=True):
            attack(victim)
            assert concluded(victim.conn, None).complete
