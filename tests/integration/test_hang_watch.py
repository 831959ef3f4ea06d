"""A database that hangs: waiting calls fail, new calls are refused; slow statements and busy machines are not cut."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from statistics import median

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.postgres import hang_watch
from gatekeeper_grpc.store.postgres.database import Database, current_revision
from gatekeeper_grpc.store.postgres.hang_watch import HangWatch
from gatekeeper_grpc.store.postgres.servers import ServerConnection, Servers
from tests.support.processes import TIMEOUT_S
from tests.support.replication import Node, Pair, running_node, running_pair
from tests.support.servers import KEYS, settings_for_tests
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B2")

HUNG_AFTER_S = 0.75
# In addition to the promised second: the bound on a busy machine, which runs these tests as well.
MARGIN_S = 4.0
CALLERS = 30
COPY_WITHOUT_END = "COPY (SELECT generate_series(1, 1000000000)) TO STDOUT"
BUSY_LOOPS = 8


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running_node() as node:
        yield node


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no task waits for a CPU, whatever runs next to this test."""
    monkeypatch.setattr(hang_watch, "cpu_pressure_s", lambda: 0.0)
    monkeypatch.setattr(hang_watch, "_BUSY_LATE_SHARE", 1.0)


@pytest.fixture
def watched(node: Node) -> Iterator[Database]:
    """An open pool with a hang watch, with connections made."""
    with closing(Database(node.dsn, hung_after_s=HUNG_AFTER_S)) as database:
        database.open()
        database._pool.wait()
        assert eventually(lambda: database._watch._conn)
        yield database


def revision(database: Database) -> int:
    with database.read() as conn:
        return current_revision(conn)


def outcome_of(act: Callable[[], object]) -> tuple[str, float]:
    """How a call ended, and after how many seconds."""
    began_at = time.monotonic()
    try:
        act()
    except Unavailable:
        return "unavailable", time.monotonic() - began_at
    return "answered", time.monotonic() - began_at


def hold(database: Database) -> None:
    """Execute a statement that takes long."""
    with database.read() as conn:
        conn.execute("SELECT pg_sleep(20)")


@pytest.mark.usefixtures("quiet")
def test_calls_on_a_database_that_hangs_fail_in_time(node: Node, watched: Database) -> None:
    with ThreadPoolExecutor(CALLERS) as callers, node.hanging():
        calls = [callers.submit(outcome_of, lambda: revision(watched)) for _ in range(CALLERS)]
        outcomes = [call.result(TIMEOUT_S) for call in calls]

    assert {outcome for outcome, _ in outcomes} == {"unavailable"}
    assert max(took_s for _, took_s in outcomes) < 1.0 + MARGIN_S


@pytest.mark.usefixtures("quiet")
def test_a_copy_from_a_database_that_hangs_fails_in_time(node: Node, watched: Database) -> None:
    def copy() -> None:
        with watched.read() as conn, watched.copying(conn, COPY_WITHOUT_END, types=["int4"]) as rows:
            for _ in rows:
                is_copying.set()

    is_copying = threading.Event()
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(outcome_of, copy)
        assert is_copying.wait(TIMEOUT_S)
        with node.hanging():
            began_at = time.monotonic()
            outcome, _ = call.result(TIMEOUT_S)
            took_s = time.monotonic() - began_at

    assert (outcome, took_s < 1.0 + MARGIN_S) == ("unavailable", True)


def test_twin_without_the_watch_calls_wait_for_as_long_as_it_hangs(node: Node) -> None:
    with closing(Database(node.dsn)) as unwatched, ThreadPoolExecutor(1) as callers:
        unwatched.open()
        unwatched._pool.wait()
        with node.hanging():
            call = callers.submit(outcome_of, lambda: revision(unwatched))
            time.sleep(1.0 + MARGIN_S)
            still_waits = not call.done()
        assert call.result(TIMEOUT_S)[0] == "answered"

    assert still_waits


def test_new_calls_are_refused_at_once_while_it_hangs(node: Node, watched: Database) -> None:
    with node.hanging():
        assert eventually(watched._watch.is_hung)
        refused = [outcome_of(lambda: revision(watched)) for _ in range(100)]

    assert {outcome for outcome, _ in refused} == {"unavailable"}
    assert median(took_s for _, took_s in refused) < 0.1


def test_calls_succeed_soon_after_it_answers_again(node: Node, watched: Database) -> None:
    with node.hanging():
        assert outcome_of(lambda: revision(watched))[0] == "unavailable"
    back_at = time.monotonic()
    assert eventually(lambda: outcome_of(lambda: revision(watched))[0] == "answered")

    assert time.monotonic() - back_at < 2.0 + MARGIN_S


def test_a_hang_is_one_line_in_the_log_and_its_end_another(node: Node, watched: Database) -> None:
    with capture_logs() as logs:
        with node.hanging():
            assert eventually(watched._watch.is_hung)
            time.sleep(1.0)
        assert eventually(lambda: not watched._watch.is_hung())

    assert [(log["event"], log["log_level"]) for log in logs] == [
        ("database_hung", "error"),
        ("database_answers_again", "warning"),
    ]


def test_a_statement_that_takes_long_is_not_cut(watched: Database) -> None:
    with capture_logs() as logs, watched.read() as conn:
        conn.execute("SELECT pg_sleep(%s)", [2 * HUNG_AFTER_S])

    assert logs == []


def test_a_busy_process_does_not_take_its_lateness_for_a_hang(watched: Database) -> None:
    ending = threading.Event()

    def burn() -> None:
        while not ending.is_set():
            sum(range(10_000))

    with capture_logs() as logs, ThreadPoolExecutor(8) as burners:
        for _ in range(8):
            burners.submit(burn)
        time.sleep(3 * HUNG_AFTER_S)
        ending.set()

    assert logs == []


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Processes that compute, each with a session and so a share of the CPUs of its own; for a minute at most."""
    loop = [sys.executable, "-c", "import time; end = time.time() + 60\nwhile time.time() < end: pass"]
    with ExitStack() as stack:
        for _ in range(count):
            stack.callback(stack.enter_context(subprocess.Popen(loop, start_new_session=True)).kill)
        yield


def silence_of(node: Node, seconds: float) -> list[str]:
    """The log events of a watch on a server that is silent for so long while a transaction is open."""
    with closing(Database(node.dsn, hung_after_s=HUNG_AFTER_S)) as database, capture_logs() as logs:
        database.open()
        database._pool.wait(TIMEOUT_S)  # A call that needs a new connection would fail by itself.
        assert eventually(lambda: database._watch._conn)
        with ThreadPoolExecutor(1) as callers, node.hanging():
            callers.submit(outcome_of, lambda: revision(database))
            time.sleep(seconds)
        assert eventually(lambda: not database._watch.is_hung())
    return [log["event"] for log in logs]


def test_a_machine_that_is_busy_is_not_taken_for_a_hang(node: Node) -> None:
    with busy_loops(BUSY_LOOPS):
        assert silence_of(node, 2 * HUNG_AFTER_S) == []


@pytest.mark.usefixtures("quiet")
def test_twin_on_a_quiet_machine_the_same_silence_is_a_hang(node: Node) -> None:
    assert silence_of(node, 2 * HUNG_AFTER_S)[:1] == ["database_hung"]


def test_a_hang_on_a_busy_machine_is_noticed_within_the_longer_bound(node: Node, watched: Database) -> None:
    with busy_loops(BUSY_LOOPS), node.hanging():
        assert outcome_of(lambda: revision(watched))[0] == "unavailable"
        began_at = time.monotonic()
        assert eventually(watched._watch.is_hung)

    assert time.monotonic() - began_at < hang_watch._BUSY_FACTOR * HUNG_AFTER_S + MARGIN_S


def questions_asked(seconds: float) -> list[float]:
    """The times at which any watch asks its server, for so long."""
    asked_at: list[float] = []
    ask = hang_watch.answers

    def counted(conn: ServerConnection, *, within_s: float) -> bool:
        asked_at.append(time.monotonic())
        return ask(conn, within_s=within_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hang_watch, "answers", counted)
        time.sleep(seconds)
    return asked_at


@pytest.mark.usefixtures("watched")
def test_at_rest_the_watch_asks_once_a_second() -> None:
    assert 1 <= len(questions_asked(3.0)) <= 4


def test_twin_while_a_transaction_is_open_it_asks_more_often(watched: Database) -> None:
    with watched.read():
        assert len(questions_asked(3.0)) > 5


def test_a_transaction_makes_a_resting_watch_ask_at_once(watched: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    ask = hang_watch.answers

    def noted(conn: ServerConnection, *, within_s: float) -> bool:
        asked.set()
        return ask(conn, within_s=within_s)

    monkeypatch.setattr(hang_watch, "answers", noted)
    monkeypatch.setattr(hang_watch, "_ASK_EVERY_AT_REST_S", 3_600.0)
    for _ in range(2):  # The first rest may have begun as one of a second; the next one is of an hour.
        with watched.read():
            assert asked.wait(TIMEOUT_S)
        asked.clear()


def test_a_database_that_is_down_does_not_count_as_hung() -> None:
    with running_node() as node, closing(Database(node.dsn, hung_after_s=HUNG_AFTER_S)) as database:
        database.open()
        assert revision(database) == 0
        node.kill()
        with capture_logs() as logs:
            assert outcome_of(lambda: revision(database))[0] == "unavailable"
            time.sleep(2 * HUNG_AFTER_S)
            assert not database._watch.is_hung()
        node.start()

        assert eventually(lambda: outcome_of(lambda: revision(database))[0] == "answered")
    assert [log for log in logs if log["event"] == "database_hung"] == []


def test_the_user_of_a_dedicated_connection_is_freed_as_well(node: Node, watched: Database) -> None:
    def listen() -> None:
        with watched.dedicated() as conn:
            listening.set()
            list(conn.notifies(timeout=TIMEOUT_S))
            conn.execute("SELECT 1")

    listening = threading.Event()
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(outcome_of, listen)
        assert listening.wait(TIMEOUT_S)
        with node.hanging():
            outcome, _ = call.result(TIMEOUT_S)

    assert outcome == "unavailable"


def test_a_cut_never_hits_a_descriptor_that_was_reused(node: Node) -> None:
    servers = Servers(node.dsn)
    watch = HangWatch(servers, on_hang=lambda: None)
    conn = servers.connect()
    with watch.guard(conn):
        number = conn.fileno()
        conn.close()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert number in {ours.fileno(), theirs.fileno()}
            watch._cut()
            ours.send(b"alive")

            assert theirs.recv(5) == b"alive"


def test_a_connection_is_not_used_once_the_database_hangs(node: Node) -> None:
    servers = Servers(node.dsn)
    watch = HangWatch(servers, on_hang=lambda: None)
    with closing(servers.connect()) as conn:
        watch._cut()
        with pytest.raises(Exception, match="does not answer"), watch.guard(conn):
            pytest.fail("it hangs")


def test_min_revision_is_refused_in_time_while_the_database_hangs(node: Node) -> None:
    server = GatekeeperServer(settings_for_tests(), dsn=node.dsn, keys=KEYS)
    server.start()
    try:
        with node.hanging():
            outcome, took_s = outcome_of(lambda: server.cache.at_least(server.cache.current().revision + 1))
            server.cache.current()  # Without min_revision, evaluation continues.
    finally:
        server.stop()

    assert outcome == "unavailable"
    assert took_s < 0.5 + MARGIN_S


_WAITS_FOR_STANDBY = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def commits_without_the_standby(pair: Pair, database: Database) -> Future[tuple[str, float]]:
    """A commit that a synchronous standby never confirms."""

    def commit() -> None:
        with database.write() as conn:
            conn.execute("UPDATE revision_head SET revision = revision + 1")

    pair.standby.kill()
    committing = Future[tuple[str, float]]()
    threading.Thread(target=lambda: committing.set_result(outcome_of(commit))).start()
    assert eventually(lambda: pair.primary.run(_WAITS_FOR_STANDBY) == [(1,)])
    return committing


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "twin without the watch"])
def test_a_commit_that_waits_for_a_missing_standby_is_given_up_in_time(*, watched: bool) -> None:
    with running_pair(synchronous=True) as pair:
        hung_after_s = HUNG_AFTER_S if watched else None
        with closing(Database(pair.primary.dsn, statement_timeout_s=1.0, hung_after_s=hung_after_s)) as database:
            database.open()
            committing = commits_without_the_standby(pair, database)
            time.sleep(1.0 + MARGIN_S)
            freed = committing.done()
            pair.standby.start()
            outcome, _ = committing.result(TIMEOUT_S)

    assert (freed, outcome) == ((True, "unavailable") if watched else (False, "answered"))
