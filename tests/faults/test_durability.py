"""Acknowledged writes survive kill -9 of server and PostgreSQL, each with its audit entry."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import postgres as databases
from tests.faults.figures import KILLS
from tests.faults.fleet import Fleet, fleet
from tests.faults.load import Writer, at_work
from tests.faults.postgres import Postgres
from tests.faults.report import Report
from tests.support.records import chained_entries, flag_revisions
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("A1")

WRITERS = 4
# Acknowledged to each writer between two kills.
WRITES = 5
# Kills after which a twin must have lost something.
TWIN_KILLS = 10


@contextmanager
def writing(instances: Fleet) -> Iterator[Sequence[Writer]]:
    """Write with several clients for the length of the block."""
    writers = [Writer(lambda: instances[0].admin, f"writer-{number}") for number in range(WRITERS)]
    with at_work(*writers):
        yield writers


def wait_until_all_wrote(writers: Sequence[Writer]) -> None:
    wanted = [len(writer.acknowledged) + WRITES for writer in writers]
    assert eventually(lambda: all(len(writer.acknowledged) >= n for writer, n in zip(writers, wanted, strict=True)))


def kill_server(instances: Fleet) -> None:
    instances[0].gatekeeper.kill()
    instances.restart(0)


def acknowledged(writers: Sequence[Writer]) -> dict[str, int]:
    return {key: revision for writer in writers for key, revision in writer.acknowledged.items()}


def lost(dsn: str, writers: Sequence[Writer]) -> dict[str, int]:
    """The writes that were acknowledged by now and are not there."""
    told = acknowledged(writers)
    kept = flag_revisions(dsn)
    return {key: revision for key, revision in told.items() if kept.get(key) != revision}


def apart(dsn: str) -> set[tuple[str, int]]:
    """Writes without their audit entry, and entries without their write; to be asked when nobody writes any more."""
    return flag_revisions(dsn).items() ^ {(entry.resource_key, entry.revision) for entry in chained_entries(dsn)}


def summary(writers: Sequence[Writer]) -> str:
    return f"{len(acknowledged(writers)):,} writes acknowledged"


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with (
        fleet(postgres, tmp_path, size=1) as instances,
        writing(instances) as writers,
        report.fault("A1", f"server killed {KILLS} times") as row,
    ):
        for _ in range(KILLS):
            wait_until_all_wrote(writers)
            kill_server(instances)
        wait_until_all_wrote(writers)
    row.also = summary(writers)

    assert (lost(postgres.dsn, writers), apart(postgres.dsn)) == ({}, set())


def test_nothing_acknowledged_is_lost_when_postgres_is_killed(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with (
        fleet(postgres, tmp_path, size=1) as instances,
        writing(instances) as writers,
        report.fault("A1", f"PostgreSQL killed {KILLS} times") as row,
    ):
        for _ in range(KILLS):
            wait_until_all_wrote(writers)
            postgres.kill()
        wait_until_all_wrote(writers)
    row.also = summary(writers)

    assert {code for writer in writers for code in writer.refused} <= {"UNAVAILABLE"}
    assert (lost(postgres.dsn, writers), apart(postgres.dsn)) == ({}, set())


def test_twin_answers_before_the_commit_are_lost(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    with fleet(postgres, tmp_path, size=1, sabotage="early_answers") as instances, writing(instances) as writers:
        for _ in range(TWIN_KILLS):
            wait_until_all_wrote(writers)
            kill_server(instances)
            if lost(postgres.dsn, writers):
                break

    assert lost(postgres.dsn, writers)
    report.twin("A1", "answer after the commit", f"{len(lost(postgres.dsn, writers))} acknowledged writes lost")


def test_twin_without_one_transaction_there_are_writes_without_an_entry(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=1, sabotage="audit_apart") as instances, writing(instances) as writers:
        assert eventually(lambda: sum(writer.refused.total() for writer in writers) >= WRITERS)

    assert apart(postgres.dsn)
    report.twin("A1", "one transaction for write and entry", f"{len(apart(postgres.dsn))} writes without their entry")


def test_twin_without_synchronous_commit_acknowledged_writes_are_lost(
    data_dir: Path, tmp_path: Path, report: Report
) -> None:
    lazy = {"synchronous_commit": "off", "wal_writer_delay": "10s"}
    with (
        databases.running(data_dir, **lazy) as postgres,
        fleet(postgres, tmp_path, size=1) as instances,
        writing(instances) as writers,
    ):
        for _ in range(TWIN_KILLS):
            wait_until_all_wrote(writers)
            postgres.kill()
            assert eventually(postgres.answers)
            if lost(postgres.dsn, writers):
                break
        assert lost(postgres.dsn, writers)
        report.twin("A1", "synchronous_commit", f"{len(lost(postgres.dsn, writers))} acknowledged writes lost")
