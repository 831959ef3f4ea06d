"""Partitions of the audit log, made ahead and moved to files: what is left verifies, and so do the files."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import errors as pg

from gatekeeper_grpc.auth.checkpoints import key_to_text, new_signing_key
from gatekeeper_grpc.cli.audit import audit
from gatekeeper_grpc.domain.audit import AuditAnchor, RecordedEntry
from gatekeeper_grpc.domain.audit_verifier import AuditFault, Verification
from gatekeeper_grpc.domain.commands import MemberEdit
from gatekeeper_grpc.domain.errors import FailedPrecondition, Unavailable
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.domain.segment import SegmentConfig
from gatekeeper_grpc.lifecycle.keys import load_audit_signer
from gatekeeper_grpc.privacy.reapply import AlreadyRecorded
from gatekeeper_grpc.store.audit.archive import (
    ArchiveFile,
    AuditArchive,
    read_archives,
    verify_archives,
    verify_with_archives,
)
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.erasure import ErasureStore
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.maintenance import Maintenance
from gatekeeper_grpc.store.members import MemberStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database, one
from gatekeeper_grpc.store.segments import SegmentStore
from gatekeeper_grpc.store.usage import UsageStore
from tests.support.servers import KEYS, settings_for_tests

SIZE = 5


@pytest.fixture
def small_partitions(database: Database) -> Database:
    """A database whose partitions hold five entries each: 1 to 4, 5 to 9, and no more."""
    with database.write() as conn:
        conn.execute("DROP TABLE audit_log_p000000, audit_log_p000001, audit_log_p000002")
        conn.execute("SELECT make_audit_partitions(1, %s)", (SIZE,))
    return database


@pytest.fixture
def log(small_partitions: Database) -> Database:
    """A database with twelve entries in three partitions: 1 to 4, 5 to 9, 10 to 12."""
    write_entries(small_partitions, 9)
    make_partitions(small_partitions)
    write_entries(small_partitions, 3, prefix="more")
    return small_partitions


def write_entries(database: Database, count: int, *, prefix: str = "flag") -> None:
    flags = FlagStore(database, MutationRunner(database, KEYS.data))
    for number in range(count):
        flags.create(FlagConfig(key=f"{prefix}-{number}"), Intent(caller=None, action="CreateFlag"))


def make_partitions(database: Database) -> int:
    with database.write() as conn:
        (made,) = one(conn.execute("SELECT make_audit_partitions(1, %s)", (SIZE,)))
    return int(made)


def partitions(database: Database) -> list[str]:
    with database.read() as conn:
        rows = conn.execute("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'audit_log'::regclass")
        return sorted(name for (name,) in rows)


def anchor_of(database: Database, seq: int) -> AuditAnchor:
    with database.read() as conn:
        (digest,) = one(conn.execute("SELECT hash FROM audit_log WHERE seq = %s", (seq,)))
    return AuditAnchor(seq=seq, hash=digest)


def concluded(reports: Iterable[Verification]) -> Verification:
    *_, last = reports
    return last


def fault_in(reports: Iterable[Verification]) -> tuple[AuditFault, int] | None:
    faulty = concluded(reports).faulty
    return (faulty.fault, faulty.seq) if faulty else None


def archived(database: Database, folder: Path) -> list[ArchiveFile]:
    """Move all partitions but the newest."""
    return list(AuditArchive(database, folder).move(keep_partitions=1))


# --- Partitions -------------------------------------------------------------------------------------------------------


def test_writes_cross_the_boundary_between_partitions(small_partitions: Database) -> None:
    write_entries(small_partitions, 9)

    with small_partitions.read() as conn:
        rows = conn.execute("SELECT tableoid::regclass::text, count(*) FROM audit_log GROUP BY 1 ORDER BY 1").fetchall()
    assert rows == [("audit_log_p000000", 4), ("audit_log_p000001", 5)]
    assert concluded(AuditStore(small_partitions).verify()).complete


def test_a_write_without_a_partition_is_refused_whole_until_there_is_one(small_partitions: Database) -> None:
    write_entries(small_partitions, 9)
    with pytest.raises(Unavailable, match="no partition for the next entry; nothing was changed"):
        write_entries(small_partitions, 1, prefix="late")
    before = AuditStore(small_partitions).head()

    made = make_partitions(small_partitions)
    write_entries(small_partitions, 1, prefix="late")

    assert (before.revision, made) == (9, 1)
    assert concluded(AuditStore(small_partitions).verify()).verified_entries == 10


def test_maintenance_makes_partitions_ahead_of_the_head(database: Database) -> None:
    maintenance = Maintenance(database, LoginStore(database), UsageStore(database))
    idle = maintenance.run().audit_partitions
    with database.write() as conn:
        conn.execute("UPDATE revision_head SET audit_seq = 2500000")

    made = maintenance.run().audit_partitions

    assert (idle, made) == (0, 2)
    assert partitions(database) == [f"audit_log_p00000{number}" for number in range(5)]


def test_every_new_partition_refuses_truncate_to_its_owner(small_partitions: Database) -> None:
    for name in partitions(small_partitions):
        with (
            pytest.raises(pg.InsufficientPrivilege, match="append-only"),
            psycopg.connect(small_partitions.dsn) as conn,
        ):
            conn.execute(f"TRUNCATE {name}".encode())


# --- Moving to files --------------------------------------------------------------------------------------------------


def test_whole_partitions_are_moved_and_the_rest_still_verifies(log: Database, tmp_path: Path) -> None:
    before = AuditStore(log).head().anchor
    files = archived(log, tmp_path / "archive")

    report = concluded(AuditStore(log).verify(before))

    assert [(file.first_seq, file.last_seq) for file in files] == [(1, 4), (5, 9)]
    assert partitions(log) == ["audit_log_p000002"]
    assert (report.complete, report.verified_entries, report.redacted_documents) == (True, 5, 0)


def test_moving_is_recorded_in_the_log_and_moves_the_documents_too(log: Database, tmp_path: Path) -> None:
    last = anchor_of(log, 9)
    (_, file) = archived(log, tmp_path)

    with log.read() as conn:
        action, document = one(
            conn.execute("SELECT action, document FROM audit_log JOIN audit_documents USING (seq) WHERE seq = 14")
        )
        documents = conn.execute("SELECT min(seq), count(*) FROM audit_documents").fetchall()
    recorded = json.loads(document)
    assert action == "ArchiveAuditLog"
    assert (recorded["first_seq"], recorded["last_seq"]) == (5, 9)
    assert (recorded["last_hash"], recorded["sha256"]) == (last.hash.hex(), file.sha256.hex())
    assert documents == [(10, 5)]


@pytest.mark.parametrize(
    ("before", "keep_partitions", "moved"),
    [(5, None, 1), (9, None, 1), (10, None, 2), (99, None, 2), (4, None, 0), (None, 1, 2), (None, 2, 1), (None, 3, 0)],
)
def test_only_full_partitions_that_were_asked_for_are_moved(
    log: Database, tmp_path: Path, before: int | None, keep_partitions: int | None, moved: int
) -> None:
    files = list(AuditArchive(log, tmp_path).move(before=before, keep_partitions=keep_partitions))

    assert len(files) == moved
    assert concluded(AuditStore(log).verify()).complete


def test_archives_are_verified_alone_and_with_the_rest(log: Database, tmp_path: Path) -> None:
    early, late = anchor_of(log, 3), anchor_of(log, 11)
    archived(log, tmp_path)
    files = read_archives(tmp_path)

    alone = concluded(verify_archives(files, early))
    together = [concluded(verify_with_archives(log, files, anchor)) for anchor in (early, late, None)]

    assert (alone.complete, alone.verified_entries) == (True, 9)
    assert [(report.complete, report.verified_entries) for report in together] == [(True, 14)] * 3


def test_an_anchor_of_an_archived_entry_is_compared_only_with_the_archives(log: Database, tmp_path: Path) -> None:
    early = anchor_of(log, 3)
    archived(log, tmp_path)

    with pytest.raises(FailedPrecondition, match="verify with the archives") as refusal:
        concluded(AuditStore(log).verify(early))
    assert refusal.value.reason == "AUDIT_ENTRY_ARCHIVED"
    forged = AuditAnchor(seq=3, hash=bytes(32))
    assert fault_in(verify_with_archives(log, read_archives(tmp_path), forged)) == (AuditFault.ANCHOR_MISMATCH, 3)


def erased(database: Database, user_id: str) -> None:
    ErasureStore(database, MutationRunner(database, KEYS.data), AlreadyRecorded()).erase(
        user_id, Intent(caller=None, action="EraseUser")
    )


def test_a_redacted_document_stays_redacted_in_the_archive(small_partitions: Database, tmp_path: Path) -> None:
    log, mutations = small_partitions, MutationRunner(small_partitions, KEYS.data)
    members = MemberStore(log, mutations)
    SegmentStore(log, mutations).create(SegmentConfig(key="team"), Intent(caller=None, action="CreateSegment"))
    for number in range(8):
        edit = MemberEdit(segment_key="team", user_ids=("eve", f"user-{number}"))
        reason = "for eve" if number in (0, 4) else ""
        members.add(edit, Intent(caller=None, action="AddSegmentMembers", change_reason=reason))
    make_partitions(log)
    erased(log, "eve")
    write_entries(log, 2)
    archived(log, tmp_path)

    report = concluded(verify_with_archives(log, read_archives(tmp_path)))

    assert (report.complete, report.redacted_documents) == (True, 2)
    assert (report.verified_subjects, report.incomparable_subjects) == (8, 0)
    alone = concluded(verify_archives(read_archives(tmp_path)))
    assert (alone.complete, alone.redacted_documents, alone.unaccounted_documents) == (True, 2, 0)
    rest = concluded(AuditStore(log).verify())
    assert (rest.complete, rest.verified_subjects, rest.incomparable_subjects) == (True, 0, 8)


def test_what_is_known_of_people_is_compared_with_the_archives(small_partitions: Database, tmp_path: Path) -> None:
    log, mutations = small_partitions, MutationRunner(small_partitions, KEYS.data)
    SegmentStore(log, mutations).create(SegmentConfig(key="team"), Intent(caller=None, action="CreateSegment"))
    edit = MemberEdit(segment_key="team", user_ids=("ann", "bob"))
    MemberStore(log, mutations).add(edit, Intent(caller=None, action="AddSegmentMembers"))
    write_entries(log, 7)
    make_partitions(log)
    write_entries(log, 3, prefix="more")
    archived(log, tmp_path)
    with log.write() as conn:
        conn.execute("UPDATE subjects SET user_id = 'eve' WHERE user_id = 'bob'")

    assert fault_in(verify_with_archives(log, read_archives(tmp_path))) == (AuditFault.SUBJECT_ALTERED, 2)
    assert concluded(AuditStore(log).verify()).incomparable_subjects == 2


def test_nothing_is_archived_while_a_document_is_missing(log: Database, tmp_path: Path) -> None:
    with log.write() as conn:
        conn.execute("DELETE FROM audit_documents WHERE seq = 6")

    with pytest.raises(FailedPrecondition, match="the document of entry 6 is missing"):
        archived(log, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_an_earlier_release_is_read(log: Database, tmp_path: Path) -> None:
    """Entries without evidence are written as they always were."""
    file, _ = archived(log, tmp_path)

    (line, *_) = file.path.read_bytes().splitlines()

    assert list(json.loads(line)) == [*RecordedEntry._fields[:14]]


def edited(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"CreateFlag", b"DeleteFlag", 1))


def shortened(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize("spoil", [edited, shortened, Path.unlink])
def test_an_archive_that_was_altered_or_lost_is_found(
    log: Database, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    file, _ = archived(log, tmp_path)
    spoil(file.path)

    with pytest.raises(FailedPrecondition, match=r"another one|is missing"):
        concluded(verify_with_archives(log, read_archives(tmp_path)))


def test_an_archive_altered_with_its_checksum_is_found_by_its_hashes(log: Database, tmp_path: Path) -> None:
    file, _ = archived(log, tmp_path)
    edited(file.path)
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
    file.path.with_suffix(".sha256").write_text(f"{digest}  {file.path.name}\n")

    assert fault_in(verify_archives(read_archives(tmp_path))) == (AuditFault.ENTRY_ALTERED, 1)
    with pytest.raises(FailedPrecondition, match="or is another file"):
        concluded(verify_with_archives(log, read_archives(tmp_path)))


def test_nothing_is_dropped_when_the_partition_does_not_verify(log: Database, tmp_path: Path) -> None:
    with log.write() as conn:
        conn.execute("ALTER TABLE audit_log DISABLE TRIGGER ALL")
        conn.execute("UPDATE audit_log SET actor = 'admin:eve' WHERE seq = 3")

    with pytest.raises(FailedPrecondition, match="nothing was dropped: entry 3 was altered"):
        archived(log, tmp_path)
    assert len(partitions(log)) == 3


def test_nothing_is_dropped_while_somebody_reads_the_log(log: Database, tmp_path: Path) -> None:
    reports = AuditStore(log).verify()
    next(reports)

    with pytest.raises(Unavailable, match="another session reads the audit log"):
        archived(log, tmp_path)
    list(reports)
    assert len(archived(log, tmp_path)) == 2


def test_the_record_of_archives_cannot_be_changed_by_its_owner(log: Database, tmp_path: Path) -> None:
    archived(log, tmp_path)

    for change in ("DELETE FROM audit_archives", "UPDATE audit_archives SET last_seq = 12", "TRUNCATE audit_archives"):
        with pytest.raises(pg.InsufficientPrivilege, match="append-only"), psycopg.connect(log.dsn) as conn:
            conn.execute(change.encode())


# --- The command ------------------------------------------------------------------------------------------------------


def run(database: Database, *arguments: str, **settings: object) -> Result:
    loaded = settings_for_tests(database_url=database.dsn, **settings)
    return CliRunner().invoke(audit, arguments, obj=loaded)


def test_the_command_prints_an_anchor_and_verifies_against_it(log: Database) -> None:
    head = AuditStore(log).head().anchor
    anchor = run(log, "anchor").output.strip()
    write_entries(log, 1, prefix="later")

    good = run(log, "verify", "--anchor", anchor)
    bad = run(log, "verify", "--anchor", f"{head.seq}:{'0' * 64}")

    assert anchor == f"{head.seq}:{head.hash.hex()}"
    assert (good.exit_code, good.output.startswith("verified 13 entries, of which 0")) == (0, True)
    assert (bad.exit_code, bad.output.startswith("anchor_mismatch at entry 12: ")) == (1, True)
    assert run(log, "verify", "--anchor", "12:abc").exit_code == 2


def test_the_command_archives_and_verifies_archives(log: Database, tmp_path: Path) -> None:
    early = anchor_of(log, 3)
    folder = str(tmp_path / "archive")

    moved = run(log, "archive", "--keep-partitions", "1", "--to", folder, migration_database_url=log.dsn)

    assert moved.output.count("archived") == 2
    assert run(log, "verify", "--archives", folder).output.startswith("verified 14 entries")
    assert run(log, "verify-archives", folder, "--anchor", f"3:{early.hash.hex()}").output.startswith("verified 9")
    assert run(log, "archive", "--to", folder).exit_code == 2


def test_what_is_archived_is_neither_right_nor_wrong(log: Database, tmp_path: Path) -> None:
    run(log, "archive", "--keep-partitions", "1", "--to", str(tmp_path), migration_database_url=log.dsn)

    result = run(log, "reconcile")
    with log.write() as conn:
        conn.execute("UPDATE feature_flags SET description = 'x' WHERE key IN ('flag-0', 'more-0')")
        conn.execute("UPDATE feature_flags SET revision = 99 WHERE key = 'flag-1'")
    tampered = run(log, "reconcile")

    # Nine flags and their sets were created before what is left; three flags and their sets after.
    assert (result.exit_code, result.stdout.partition(": ")[2]) == (
        0,
        "6 agree, 0 differ, 18 not comparable (archived)\n",
    )
    assert (
        tampered.exit_code,
        [line.partition(":")[0] for line in tampered.stderr.splitlines() if "behind" in line],
    ) == (
        1,
        ["flag flag-1", "flag more-0"],
    )


def test_the_command_signs_checkpoints_that_verify_without_a_database(log: Database, tmp_path: Path) -> None:
    key = new_signing_key()
    signer = load_audit_signer(settings_for_tests(audit_signing_key=key))
    assert signer
    file = tmp_path / "checkpoint.json"
    file.write_text(run(log, "checkpoint", audit_signing_key=key).output)

    good = run(log, "verify-checkpoint", str(file), "--public-key", key_to_text(signer.public_key))
    bad = run(log, "verify-checkpoint", str(file), "--public-key", key_to_text(bytes(32)))

    assert (good.exit_code, good.output) == (0, run(log, "anchor").output)
    assert (bad.exit_code, "signed with another key" in bad.output) == (1, True)


def test_an_embedded_database_gets_a_signing_key_for_its_owner_only(tmp_path: Path) -> None:
    embedded = settings_for_tests(data_dir=tmp_path)

    first, second = load_audit_signer(embedded), load_audit_signer(embedded)

    assert first
    assert second
    assert first.public_key == second.public_key
    assert (tmp_path / "audit_signing_key").stat().st_mode & 0o777 == 0o600
    assert load_audit_signer(settings_for_tests(database_url="postgresql://db", data_dir=tmp_path / "none")) is None
