"""The embedded PostgreSQL's promises, tested with real processes and real kills."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.embedded import (
    EmbeddedDatabaseError,
    EmbeddedPostgres,
    cluster,
    exec_stub,
    postmaster,
    running_dsn,
)
from gatekeeper_grpc.embedded.account import account_for
from gatekeeper_grpc.embedded.home import Home
from tests.support.processes import under
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
FAST = {"fsync": "off", "shared_buffers": "16MB"}

# A supervisor in a process of its own: `python -c SUPERVISE DATA_DIR [STUB]`. Prints its DSN, serves until stdin ends.
SUPERVISE = """
import sys
from pathlib import Path
import structlog
from gatekeeper_grpc.embedded import EmbeddedPostgres, programs
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
data_dir, *stub = (Path(argument) for argument in sys.argv[1:])
if stub:
    programs._STUB = stub[0]
with EmbeddedPostgres(data_dir, settings={"fsync": "off", "shared_buffers": "16MB"}) as database:
    print(database.dsn, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """A supervisor in another process."""

    process: subprocess.Popen[str]
    dsn: str

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def spawn(data_dir: Path, *arguments: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SUPERVISE, str(data_dir), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


@contextmanager
def gatekeeper(data_dir: Path, *arguments: Path) -> Iterator[Gatekeeper]:
    """Run a supervisor in another process, for the length of the block."""
    with spawn(data_dir, *arguments) as process:
        assert process.stdout is not None
        try:
            yield Gatekeeper(process, process.stdout.readline().strip())
        finally:
            process.kill()


def query(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def answers(dsn: str) -> bool:
    try:
        return query(dsn, "SELECT 1") == [(1,)]
    except psycopg.OperationalError:
        return False


def postmaster_pid(data_dir: Path) -> int:
    return int(Home(data_dir).cluster.joinpath("postmaster.pid").read_text().split()[0])


def kill_postmaster(data_dir: Path) -> None:
    os.kill(postmaster_pid(data_dir), signal.SIGKILL)


def socket_directory(data_dir: Path) -> Path:
    return Home(data_dir).socket_link.readlink().parent


@pytest.fixture(scope="module")
def made_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("used")
    with EmbeddedPostgres(path, settings=FAST) as database:
        query(database.dsn, "CREATE TABLE kept (at timestamptz DEFAULT now())")
    return path


@pytest.fixture
def used_dir(made_dir: Path) -> Path:
    """A data directory with a database that is not running; every test leaves it startable."""
    assert eventually(lambda: Home(made_dir).postgres_pids() == [])
    return made_dir


def test_first_start_makes_the_database_and_later_starts_keep_its_rows(tmp_path: Path) -> None:
    data_dir = tmp_path / "not" / "there" / "yet"
    with capture_logs() as logs:
        with EmbeddedPostgres(data_dir, settings=FAST) as first:
            query(first.dsn, "CREATE TABLE t AS SELECT 42 AS answer")
        with EmbeddedPostgres(data_dir, settings=FAST) as second:
            assert query(second.dsn, "SELECT answer FROM t") == [(42,)]
    assert [log["initialised"] for log in logs if "initialised" in log] == [True, False]


def test_same_object_starts_again_after_stop_and_stop_may_be_repeated(used_dir: Path) -> None:
    database = EmbeddedPostgres(used_dir, settings=FAST)
    database.stop()
    for _ in range(2):
        database.start()
        assert answers(database.dsn)
        database.stop()
        database.stop()


def test_second_start_of_an_object_and_dsn_before_start_are_refused(used_dir: Path) -> None:
    database = EmbeddedPostgres(used_dir, settings=FAST)
    with pytest.raises(EmbeddedDatabaseError, match="is not started"):
        _ = database.dsn
    with database, pytest.raises(EmbeddedDatabaseError, match="is started already"):
        database.start()


def test_database_is_durable_checksummed_and_only_on_its_socket(used_dir: Path) -> None:
    expected = {
        "fsync": "on",
        "synchronous_commit": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "listen_addresses": "",
        "lc_messages": "C",
    }
    with EmbeddedPostgres(used_dir) as database:
        rows = query(database.dsn, f"SELECT name, setting FROM pg_settings WHERE name IN {tuple(expected)}")
        collation = query(database.dsn, "SELECT datcollate FROM pg_database WHERE datname = current_database()")
        who = query(database.dsn, "SELECT current_user, current_database()")
    assert dict(rows) == expected
    assert collation == [("C",)]
    assert who == [("gatekeeper", "gatekeeper")]


def test_stop_leaves_no_process_and_no_socket_behind(used_dir: Path) -> None:
    with EmbeddedPostgres(used_dir, settings=FAST):
        socket_dir = socket_directory(used_dir)
        assert Home(used_dir).postgres_pids()
        assert socket_dir.stat().st_mode & 0o777 == 0o700
    assert Home(used_dir).postgres_pids() == []
    assert not socket_dir.exists()
    assert not Home(used_dir).socket_link.is_symlink()


def test_a_data_directory_may_be_deeper_than_a_socket_path_allows(tmp_path: Path) -> None:
    data_dir = tmp_path.joinpath(*["a-directory-name-of-forty-bytes-as-it-was"] * 30)
    assert len(str(data_dir)) > 1024
    with EmbeddedPostgres(data_dir, settings=FAST) as database:
        assert answers(database.dsn)


def test_a_second_gatekeeper_on_the_data_is_refused_with_how_to_join(used_dir: Path) -> None:
    with EmbeddedPostgres(used_dir, settings=FAST) as database:
        with spawn(used_dir) as second:
            _, errors = second.communicate()
        assert second.returncode == 1
        assert f"the embedded database of {used_dir} is in use by process {os.getpid()}" in errors
        assert "gatekeeper db-url" in errors
        assert answers(database.dsn)


def test_running_dsn_joins_the_database_of_another_process(used_dir: Path) -> None:
    with gatekeeper(used_dir) as other:
        assert running_dsn(used_dir) == other.dsn
        assert answers(running_dsn(used_dir))


@pytest.mark.parametrize("never_used", [True, False])
def test_running_dsn_without_a_database_says_how_to_start_one(
    used_dir: Path, tmp_path: Path, *, never_used: bool
) -> None:
    with pytest.raises(EmbeddedDatabaseError, match=r"no embedded database runs in .*gatekeeper serve"):
        running_dsn(tmp_path if never_used else used_dir)


@pytest.mark.parametrize("restarted_before", [False, True])
def test_kill_9_of_gatekeeper_ends_postgres_and_the_next_start_works(used_dir: Path, *, restarted_before: bool) -> None:
    with gatekeeper(used_dir) as killed:
        query(killed.dsn, "INSERT INTO kept DEFAULT VALUES")
        rows = query(killed.dsn, "SELECT * FROM kept")
        if restarted_before:
            kill_postmaster(used_dir)
            assert eventually(lambda: answers(killed.dsn))
        left_behind = socket_directory(used_dir)
        killed.kill()
        assert eventually(lambda: Home(used_dir).postgres_pids() == [])
    with EmbeddedPostgres(used_dir, settings=FAST) as database:
        assert query(database.dsn, "SELECT * FROM kept") == rows
        assert not left_behind.exists()


def test_next_start_after_kill_9_needs_no_cleanup(used_dir: Path) -> None:
    with gatekeeper(used_dir) as killed:
        killed.kill()
        with EmbeddedPostgres(used_dir, settings=FAST) as database:
            assert answers(database.dsn)


def test_twin_without_the_death_signal_an_orphan_is_reported(
    used_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of kill -9: without PDEATHSIG postgres survives, and the lock shows it."""
    monkeypatch.setattr(cluster, "_ORPHANS_TIMEOUT_S", 0.2)
    stub = tmp_path / "stub_without_death_signal.py"
    stub.write_text(Path(exec_stub.__file__).read_text().replace("signal.SIGINT, 0", "0, 0"))
    with gatekeeper(used_dir, stub) as killed:
        killed.kill()
    orphan = postmaster_pid(used_dir)
    try:
        with pytest.raises(EmbeddedDatabaseError, match=rf"orphaned postgres still runs on .*\[{orphan}, "):
            EmbeddedPostgres(used_dir).start()
        assert answers(killed.dsn)
    finally:
        os.kill(orphan, signal.SIGINT)
    assert eventually(lambda: Home(used_dir).postgres_pids() == [])


def test_kill_9_of_the_postmaster_recovers_under_the_same_dsn(used_dir: Path) -> None:
    with EmbeddedPostgres(used_dir, settings=FAST) as database:
        dsn, first = database.dsn, postmaster_pid(used_dir)
        query(dsn, "INSERT INTO kept DEFAULT VALUES")
        rows = query(dsn, "SELECT * FROM kept")
        for _ in range(2):
            kill_postmaster(used_dir)
            assert eventually(lambda: answers(dsn))
        assert postmaster_pid(used_dir) != first
        assert database.dsn == dsn == running_dsn(used_dir)
        assert query(dsn, "SELECT * FROM kept") == rows


def test_restart_that_fails_is_logged_and_tried_again(used_dir: Path) -> None:
    version = Home(used_dir).cluster / "PG_VERSION"
    with capture_logs() as logs, EmbeddedPostgres(used_dir, settings=FAST) as database:
        version.rename(used_dir / "set-aside")
        kill_postmaster(used_dir)
        assert eventually(lambda: len([entry for entry in logs if entry["event"].endswith("restart_failed")]) >= 2)
        (used_dir / "set-aside").rename(version)
        assert eventually(lambda: answers(database.dsn))
    events = [entry["event"].removeprefix("embedded_postgres_") for entry in logs]
    failures = ["restart_failed"] * events.count("restart_failed")
    assert events == ["started", "died", *failures, "restarted", "stopped"]


def test_restart_waits_for_a_backend_that_outlives_its_postmaster(
    used_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postmaster, "_LAST_BACKEND_TIMEOUT_S", 0.3)
    with (
        capture_logs() as logs,
        EmbeddedPostgres(used_dir, settings=FAST) as database,
        psycopg.connect(database.dsn) as connection,
    ):
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        kill_postmaster(used_dir)
        assert eventually(lambda: any(f"processes: [{backend}]" in entry.get("error", "") for entry in logs))
        os.kill(backend, signal.SIGCONT)
        assert eventually(lambda: answers(database.dsn))


def test_supervisor_at_rest_does_not_wake(used_dir: Path) -> None:
    others = threading.enumerate()  # The PostgreSQL of this test process may have a supervisor, too.
    with EmbeddedPostgres(used_dir, settings=FAST) as database:
        (thread,) = (each for each in threading.enumerate() if each.name == "embedded-postgres" and each not in others)
        assert answers(database.dsn)
        before = voluntary_switches(thread)
        time.sleep(3.0)
        assert voluntary_switches(thread) <= before + 1  # It may have fallen asleep since.


def voluntary_switches(thread: threading.Thread) -> int:
    """How often the thread gave up the processor to wait."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("voluntary_ctxt_switches")).split()[1])


def test_server_that_ignores_its_shutdown_is_ended_by_force(used_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postmaster, "_SHUTDOWN", ((signal.SIGINT, 0.2), (signal.SIGKILL, 5.0)))
    with EmbeddedPostgres(used_dir, settings=FAST):
        os.kill(postmaster_pid(used_dir), signal.SIGSTOP)
    assert Home(used_dir).postgres_pids() == []
    with EmbeddedPostgres(used_dir, settings=FAST) as database:
        assert answers(database.dsn)


def test_first_start_killed_half_way_does_not_hinder_the_next(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with spawn(tmp_path) as process:
        assert eventually(lambda: home.draft.joinpath("PG_VERSION").exists())
        process.kill()
    assert not home.cluster.exists()
    with EmbeddedPostgres(tmp_path, settings=FAST) as database:
        assert answers(database.dsn)
    assert not home.draft.exists()


def test_stale_pid_file_with_a_living_pid_does_not_hinder_a_start(used_dir: Path) -> None:
    stale = Home(used_dir).cluster / "postmaster.pid"
    with subprocess.Popen([*under(account_for(Home(used_dir).cluster)), "sleep", "60"]) as namesake:
        stale.write_text(f"{namesake.pid}\n{used_dir}\n0\n5432\n/tmp\n\n\nready   \n")
        try:
            with EmbeddedPostgres(used_dir, settings=FAST) as database:
                assert answers(database.dsn)
        finally:
            namesake.kill()


def test_server_started_by_hand_is_left_alone_and_reported(used_dir: Path) -> None:
    with EmbeddedPostgres(used_dir, settings=FAST):
        by_hand = Home(used_dir).postgres_pids()
        for lock in Home(used_dir).postgres_lock, Home(used_dir).supervisor_lock:
            lock.unlink()  # As if the server had never taken them: the next start makes new ones.
        with pytest.raises(EmbeddedDatabaseError, match="a postgres that Gatekeeper did not start"):
            EmbeddedPostgres(used_dir, settings=FAST).start()
        # Not all of them: backends of the running server come and go.
        assert by_hand[0] in Home(used_dir).postgres_pids()


@pytest.mark.parametrize("first_start", [True, False])
def test_start_that_fails_shows_what_postgres_said(used_dir: Path, tmp_path: Path, *, first_start: bool) -> None:
    data_dir = tmp_path if first_start else used_dir
    with pytest.raises(EmbeddedDatabaseError, match='invalid value for parameter "shared_buffers": "plenty"'):
        EmbeddedPostgres(data_dir, settings={"shared_buffers": "plenty"}).start()
    with EmbeddedPostgres(data_dir, settings=FAST) as database:
        assert answers(database.dsn)


def test_missing_programs_are_reported_with_the_searched_directory(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedDatabaseError, match=rf"not found; searched: {tmp_path}/bin\."):
        EmbeddedPostgres(tmp_path, bin_dir=tmp_path / "bin").start()
