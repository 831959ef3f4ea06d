"""The migration runner against a real PostgreSQL."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from gatekeeper_grpc.domain.errors import FailedPrecondition, GatekeeperError, InvalidArgument, Unavailable
from gatekeeper_grpc.store.migrations import runner as migrate
from gatekeeper_grpc.store.migrations.applied import MigrationState, compare
from gatekeeper_grpc.store.migrations.runner import APPLICATION_NAME, Migrator, SchemaMismatch
from tests.support.processes import TIMEOUT_S
from tests.support.replication import Node, running_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("E1")

ONE = ("0001_one", "CREATE TABLE one (a int CONSTRAINT one_pkey PRIMARY KEY, b text);", "DROP TABLE one;")
TWO = ("0002_two", "CREATE INDEX one_b ON one (b); CREATE TABLE two ();", "DROP TABLE two; DROP INDEX one_b;")
# Sleeps in the middle for as long as table `pace` says: it can be killed there, and passes on the next attempt.
PACE = ("0001_pace", "CREATE TABLE pace AS SELECT 60 AS seconds;", "DROP TABLE pace;")
SLOW = ("0002_slow", "CREATE TABLE half (); SELECT pg_sleep(seconds) FROM pace; CREATE TABLE whole ();", "")


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A PostgreSQL of these tests' own, from the product's copy of the programs; roles may be created on it."""
    with running_node() as node:
        yield node


@pytest.fixture
def dsn(node: Node) -> Iterator[str]:
    """An empty database of the test's own."""
    node.run("CREATE DATABASE test")
    yield make_conninfo(node.dsn, dbname="test")
    node.run("DROP DATABASE test WITH (FORCE)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, *migrations: tuple[str, str, str]) -> None:
    for label, up, down in migrations:
        (folder / f"{label}.up.sql").write_text(up)
        (folder / f"{label}.down.sql").write_text(down)


def query(dsn: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def tables(dsn: str) -> set[object]:
    rows = query(dsn, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    return {name for (name,) in rows} - {"schema_migrations"}


def applied(dsn: str) -> list[tuple[object, ...]]:
    return query(dsn, "SELECT version, state FROM schema_migrations ORDER BY version")


def schema(node: Node, dsn: str) -> str:
    """The schema as pg_dump writes it."""
    command = [str(node.bin_dir / "pg_dump"), "--schema-only", "--restrict-key=same", dsn]
    return subprocess.check_output(command, text=True)


def busy(dsn: str, text: str) -> list[tuple[object, ...]]:
    """Backends of a migration runner whose current statement contains `text`."""
    return query(
        dsn,
        f"SELECT pid FROM pg_stat_activity WHERE application_name = '{APPLICATION_NAME}'"
        f" AND state = 'active' AND query LIKE '%{text}%'",
    )


def kill_runner_during(dsn: str, folder: Path, text: str, *, first: str = "") -> None:
    """Start `up` in a process of its own and SIGKILL it once it runs a statement with `text`."""
    program = f"from pathlib import Path; from gatekeeper_grpc.store.migrations import runner as migrate; {first}\n"
    program += f"migrate.Migrator({dsn!r}, Path({str(folder)!r})).up()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL) as runner:
        try:
            assert eventually(lambda: busy(dsn, text))
        finally:
            runner.send_signal(signal.SIGKILL)


@contextmanager
def transaction_holding(dsn: str, sql: str) -> Iterator[None]:
    """Another client that has executed `sql` and not yet committed."""
    with psycopg.connect(dsn) as conn:
        conn.execute(sql.encode())
        yield
        conn.rollback()


# --- up and down ----------------------------------------------------------------------------------------------------


def test_up_applies_in_order_logs_each_and_then_does_nothing(dsn: str, folder: Path) -> None:
    write(folder, TWO, ONE)
    migrator = Migrator(dsn, folder)

    with capture_logs() as logs:
        first, second = migrator.up(), migrator.up()

    assert [migration.label for migration in first] == ["0001_one", "0002_two"]
    assert second == []
    assert [(line["event"], line["version"]) for line in logs] == [("migration_applied", 1), ("migration_applied", 2)]
    migrator.verify()


def test_up_stops_at_the_version_asked_for_and_never_goes_back(dsn: str, folder: Path) -> None:
    write(folder, ONE, TWO)
    migrator = Migrator(dsn, folder)

    assert [migration.version for migration in migrator.up(to=1)] == [1]
    assert [migration.version for migration in migrator.up()] == [2]
    assert migrator.up(to=1) == []
    assert tables(dsn) == {"one", "two"}


def test_up_down_up_of_a_populated_database_gives_the_same_schema(node: Node, dsn: str, folder: Path) -> None:
    write(folder, ONE, TWO, ("0003_index", "CREATE UNIQUE INDEX one_c ON one (b);", "DROP INDEX one_c;"))
    migrator = Migrator(dsn, folder)
    migrator.up(to=1)
    query(dsn, "INSERT INTO one VALUES (1, 'x')")
    start = schema(node, dsn)
    migrator.up()
    top = schema(node, dsn)

    reverted = migrator.down(to=1)

    assert [migration.version for migration in reverted] == [3, 2]
    assert schema(node, dsn) == start
    migrator.up()
    assert schema(node, dsn) == top
    assert query(dsn, "SELECT * FROM one") == [(1, "x")]


def test_down_reverts_as_many_steps_as_asked(dsn: str, folder: Path) -> None:
    write(folder, ONE, TWO)
    migrator = Migrator(dsn, folder)
    migrator.up()

    assert [migration.version for migration in migrator.down(steps=1)] == [2]
    assert applied(dsn) == [(1, "done")]
    assert [migration.version for migration in migrator.down(to=0)] == [1]
    assert tables(dsn) == set()


@pytest.mark.parametrize(
    "target",
    [{}, {"steps": 1, "to": 0}, {"steps": 0}, {"to": -1}, {"to": 3}],
    ids=["none", "both", "no-steps", "below", "above"],
)
def test_down_without_exactly_one_sensible_target_is_refused(dsn: str, folder: Path, target: dict[str, int]) -> None:
    write(folder, ONE, TWO)
    Migrator(dsn, folder).up()

    with pytest.raises(InvalidArgument):
        Migrator(dsn, folder).down(**target)

    assert tables(dsn) == {"one", "two"}


def test_up_to_a_version_that_does_not_exist_is_refused(dsn: str, folder: Path) -> None:
    write(folder, ONE)

    with pytest.raises(InvalidArgument, match="0 to 1"):
        Migrator(dsn, folder).up(to=2)


def test_status_tells_done_from_pending_and_changes_nothing(dsn: str, folder: Path) -> None:
    write(folder, ONE, TWO)
    migrator = Migrator(dsn, folder)

    assert [status.state for status in migrator.status()] == [MigrationState.PENDING, MigrationState.PENDING]
    assert query(dsn, "SELECT to_regclass('schema_migrations')") == [(None,)]

    migrator.up(to=1)

    done, pending = migrator.status()
    assert (done.label, done.state, pending.state) == ("0001_one", MigrationState.DONE, MigrationState.PENDING)
    assert done.applied_time is not None
    assert done.applied_time.utcoffset() is not None
    assert pending.applied_time is None


def test_migration_that_an_old_release_began_outside_a_transaction_is_run(dsn: str, folder: Path) -> None:
    write(folder, ONE)
    migrator = Migrator(dsn, folder)
    migrator.up(to=0)
    query(dsn, "INSERT INTO schema_migrations (version, name, checksum, state) VALUES (1, 'one', 'old', 'started')")

    assert [status.state for status in migrator.status()] == [MigrationState.PENDING]
    assert [migration.version for migration in migrator.up()] == [1]
    migrator.verify()


# --- the schema and the code disagree ---------------------------------------------------------------------------------


def test_older_schema_is_refused_with_the_command_to_run(dsn: str, folder: Path) -> None:
    write(folder, ONE, TWO)
    migrator = Migrator(dsn, folder)
    migrator.up(to=1)

    with pytest.raises(SchemaMismatch, match=r"older .*`gatekeeper migrate up` to apply 0002_two"):
        migrator.verify()


def test_newer_schema_is_refused_by_every_command_with_the_remedy(dsn: str, folder: Path) -> None:
    write(folder, ONE, TWO)
    migrator = Migrator(dsn, folder)
    migrator.up()
    for path in folder.glob("0002*"):
        path.unlink()

    for command in (migrator.verify, migrator.up, lambda: migrator.down(to=0)):
        with pytest.raises(SchemaMismatch, match=r"newer than this Gatekeeper.* 0002_two; install the newer"):
            command()
    assert [status.state for status in migrator.status()] == [MigrationState.DONE, MigrationState.UNKNOWN]
    assert tables(dsn) == {"one", "two"}


def test_edited_file_is_refused_by_name(dsn: str, folder: Path) -> None:
    write(folder, ONE)
    migrator = Migrator(dsn, folder)
    migrator.up()
    write(folder, (ONE[0], ONE[1] + " -- harmless?", ONE[2]), TWO)

    for command in (migrator.verify, migrator.up, lambda: migrator.down(to=0)):
        with pytest.raises(SchemaMismatch, match=r"edited after it was applied: .*0001_one\.up\.sql"):
            command()
    assert [status.state for status in migrator.status()] == [MigrationState.EDITED, MigrationState.PENDING]
    assert tables(dsn) == {"one"}


# --- failures ---------------------------------------------------------------------------------------------------------


BROKEN = ("0002_broken", "CREATE TABLE half ();\nCREATE TABLE oops (no_such_type nope);", "")


def test_failing_migration_leaves_nothing_and_says_which_line(dsn: str, folder: Path) -> None:
    write(folder, ONE, BROKEN)

    with pytest.raises(FailedPrecondition, match=r'0002_broken failed at line 2: .*"no.*; nothing of it was applied'):
        Migrator(dsn, folder).up()

    assert tables(dsn) == {"one"}
    assert applied(dsn) == [(1, "done")]


def test_twin_without_the_transaction_a_failed_migration_counts_as_done(
    dsn: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.Connection, "transaction", lambda _: nullcontext())
    write(folder, ONE, BROKEN)

    with pytest.raises(FailedPrecondition):
        Migrator(dsn, folder).up()

    assert applied(dsn) == [(1, "done"), (2, "done")]


def test_failing_down_file_leaves_the_migration_applied(dsn: str, folder: Path) -> None:
    write(folder, (ONE[0], ONE[1], "DROP TABLE one; DROP TABLE nowhere;"))
    migrator = Migrator(dsn, folder)
    migrator.up()

    with pytest.raises(FailedPrecondition, match="0001_one failed"):
        migrator.down(steps=1)

    assert tables(dsn) == {"one"}
    migrator.verify()


def test_killed_runner_leaves_nothing_half_applied_and_the_next_resumes(dsn: str, folder: Path) -> None:
    write(folder, PACE, SLOW)

    kill_runner_during(dsn, folder, "pg_sleep")

    assert (tables(dsn), applied(dsn)) == ({"pace"}, [(1, "done")])
    query(dsn, "UPDATE pace SET seconds = 0")
    resumed = Migrator(dsn, folder, lock_deadline_s=10.0).up()
    assert [migration.label for migration in resumed] == ["0002_slow"]
    assert tables(dsn) == {"pace", "half", "whole"}


def test_twin_without_connection_check_a_killed_runner_keeps_the_lock(dsn: str, folder: Path) -> None:
    write(folder, PACE, SLOW)

    kill_runner_during(dsn, folder, "pg_sleep", first="migrate._PREPARE_SESSION = 'SELECT 1'")

    with pytest.raises(Unavailable, match="another process has been migrating"):
        Migrator(dsn, folder, lock_deadline_s=2.5).up()


def test_unreachable_database_is_named_by_host_and_never_by_password(folder: Path) -> None:
    write(folder, ONE)

    with pytest.raises(Unavailable, match=r"PostgreSQL at 127\.0\.0\.1 cannot be reached: .*refused") as caught:
        Migrator("postgresql://gatekeeper:hunter2@127.0.0.1:1/gatekeeper", folder).verify()  # pragma: allowlist secret

    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize(
    "dsn",
    # pragma: allowlist nextline secret
    ["postgresql://u:hunter@2@host/db", "postgresql://u:hunter/2@host/db", "password=hunter2 nonsense"],
    ids=["bare-at", "bare-slash", "nonsense"],
)
def test_dsn_that_cannot_be_read_is_refused_without_showing_it(dsn: str) -> None:
    with pytest.raises(InvalidArgument, match="percent-encode") as caught:
        Migrator(dsn)

    assert "hunter" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_server_that_ends_the_session_is_reported_as_unreachable(dsn: str, folder: Path) -> None:
    write(folder, ("0001_one", "SELECT pg_terminate_backend(pg_backend_pid());", ""))

    with pytest.raises(Unavailable, match=r"PostgreSQL at .* cannot be reached: terminating connection"):
        Migrator(dsn, folder).up()


def test_role_without_rights_is_told_so(dsn: str, folder: Path) -> None:
    write(folder, ONE)
    query(dsn, "CREATE ROLE visitor LOGIN")
    try:
        with pytest.raises(
            FailedPrecondition, match=r"may not create tables in the schema public.*CREATE SCHEMA AUTHORIZATION"
        ):
            Migrator(make_conninfo(dsn, user="visitor"), folder).up()
    finally:
        query(dsn, "DROP ROLE visitor")


# --- several runners, busy tables -------------------------------------------------------------------------------------


def outcomes(dsn: str, folder: Path) -> list[list[int] | GatekeeperError]:
    """The results of two runners that start at the same instant."""
    barrier = Barrier(2)

    def start() -> list[int] | GatekeeperError:
        barrier.wait(TIMEOUT_S)
        try:
            return [migration.version for migration in Migrator(dsn, folder).up()]
        except GatekeeperError as error:
            return error

    with ThreadPoolExecutor(2) as threads:
        return [future.result() for future in [threads.submit(start), threads.submit(start)]]


BRISK = ("0001_brisk", "SELECT pg_sleep(0.3); CREATE TABLE one ();", "")


def test_of_two_concurrent_runners_one_migrates_and_the_other_does_nothing(dsn: str, folder: Path) -> None:
    write(folder, BRISK)

    results = outcomes(dsn, folder)

    assert sorted(results, key=str) == [[1], []]
    assert tables(dsn) == {"one"}


def test_twin_without_the_lock_two_runners_both_migrate(
    dsn: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, BRISK)
    Migrator(dsn, folder).up(to=0)  # The table of migrations alone, so that they race for the migration.
    both_looked = Barrier(2)
    monkeypatch.setattr(Migrator, "_take_lock", lambda *_: None)
    monkeypatch.setattr(migrate, "compare", lambda *known: (compare(*known), both_looked.wait(TIMEOUT_S))[0])

    results = outcomes(dsn, folder)

    assert {type(result) for result in results} == {FailedPrecondition, list}


def test_runner_gives_up_on_the_advisory_lock_at_its_deadline(dsn: str, folder: Path) -> None:
    write(folder, ONE)
    with (
        transaction_holding(dsn, f"SELECT pg_advisory_xact_lock({migrate._LOCK_KEY})"),
        pytest.raises(Unavailable, match=r"another process has been migrating .* for 0\.2 s"),
    ):
        Migrator(dsn, folder, lock_deadline_s=0.2).up()

    assert tables(dsn) == set()


ALTER = ("0002_alter", "ALTER TABLE one ADD COLUMN c int;", "")


def test_migration_gives_up_on_a_locked_table_in_time(dsn: str, folder: Path) -> None:
    write(folder, ONE, ALTER)
    migrator = Migrator(dsn, folder, lock_timeout_s=0.2)
    migrator.up(to=1)

    with (
        transaction_holding(dsn, "SELECT * FROM one"),
        pytest.raises(Unavailable, match=r"0002_alter failed: another session kept a table locked for 0\.2 s; nothing"),
    ):
        migrator.up()

    assert applied(dsn) == [(1, "done")]
    assert [migration.version for migration in migrator.up()] == [2]


def test_twin_without_lock_timeout_readers_queue_behind_a_migration(dsn: str, folder: Path) -> None:
    write(folder, ONE, ALTER)
    migrator = Migrator(dsn, folder, lock_timeout_s=0)
    migrator.up(to=1)

    with ThreadPoolExecutor(1) as threads:
        with transaction_holding(dsn, "SELECT * FROM one"):
            waiting = threads.submit(migrator.up)
            assert eventually(lambda: busy(dsn, "ALTER TABLE"))
            with pytest.raises(psycopg.errors.LockNotAvailable):
                query(make_conninfo(dsn, options="-c lock_timeout=300"), "SELECT * FROM one")
        assert [migration.version for migration in waiting.result(TIMEOUT_S)] == [2]
