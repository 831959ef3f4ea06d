"""A slow database is not an absent one: each step has a bound of its own, and says which one it was."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.domain import current_call
from gatekeeper_grpc.domain.caller import Caller, Role, set_current_caller
from gatekeeper_grpc.domain.commands import AuthEventFilter
from gatekeeper_grpc.domain.errors import CallAbandoned, GatekeeperError, OutcomeUnknown, Unavailable
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.store.access_trace import AccessEvent, record_access
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.logins import AuthEvent, LoginStore
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres import database as database_module
from gatekeeper_grpc.store.postgres.database import Database, current_revision
from gatekeeper_grpc.store.postgres.errors import ForeignLock
from gatekeeper_grpc.store.postgres.servers import Warnings
from tests.support.replication import Node, running_node
from tests.support.servers import KEYS
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B2", "F5")

TIMEOUT_S = 60.0
# On top of a bound, for a busy machine.
MARGIN_S = 4.0
LOCK_HEAD = "SELECT FROM revision_head FOR UPDATE"
WAITS_FOR_THE_HOLDER = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
NEXT = "UPDATE revision_head SET revision = revision + 1"


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class FakeCall:
    """A call whose caller waits for so long, or has gone."""

    left_s: float = TIMEOUT_S
    is_here: bool = True

    def time_remaining(self) -> float:
        return self.left_s

    def is_active(self) -> bool:
        return self.is_here

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


@pytest.fixture
def call() -> Iterator[Callable[[FakeCall], None]]:
    """Makes a call the current one of this thread until the end of the test."""
    calls: list[FakeCall] = []

    def begin(call: FakeCall) -> None:
        calls.append(call)  # grpcio keeps a call that it serves.
        current_call.set_current_call(call, call_id="test", arrived_at=time.monotonic())

    with current_call.detached():
        yield begin


def create(database: Database, key: str) -> int:
    intent = Intent(caller=None, action="CreateFlag")
    return FlagStore(database, MutationRunner(database, KEYS.data)).create(FlagConfig(key=key), intent).revision


def reason_of(act: Callable[[], object]) -> tuple[str, float]:
    """Why a call was refused, and after how many seconds; "OK" if it was not."""
    began_at = time.monotonic()
    try:
        act()
    except GatekeeperError as error:
        return error.reason, time.monotonic() - began_at
    return "OK", time.monotonic() - began_at


@contextmanager
def held(dsn: str, statement: str, *, application: str = "psql") -> Iterator[psycopg.Connection]:
    """Another session that has executed a statement and not ended its transaction."""
    with psycopg.connect(dsn, application_name=application) as conn:
        conn.execute(statement.encode())
        yield conn
        conn.rollback()


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_foreign_lock_is_refused_in_time_and_its_holder_named(dsn: str, database: Database) -> None:
    with capture_logs() as logs, held(dsn, LOCK_HEAD + " /* secret */") as holder:
        pid = holder.info.backend_pid
        reason, took_s = reason_of(lambda: create(database, "flag"))

    (line,) = [log for log in logs if log["event"] == "database_locked"]
    assert (reason, took_s < 2.0 + MARGIN_S) == ("DATABASE_LOCKED", True)
    assert (line["pid"], line["application"], line["state"]) == (pid, "psql", "idle in transaction")
    assert line["open_for_s"] > 0
    assert "secret" not in str(logs)
    assert create(database, "flag") == 1


def test_twin_without_a_lock_timeout_it_is_waited_for(
    dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_LOCK_TIMEOUT_S", TIMEOUT_S)
    with ThreadPoolExecutor(1) as callers:
        with held(dsn, LOCK_HEAD):
            waiting = callers.submit(reason_of, lambda: create(database, "flag"))
            time.sleep(2.0)
            still_waits = not waiting.done()
        reason, _ = waiting.result(TIMEOUT_S)

    assert (still_waits, reason) == (True, "OK")


def test_while_one_tries_a_foreign_lock_others_are_refused_at_once(dsn: str, database: Database) -> None:
    with held(dsn, LOCK_HEAD), ThreadPoolExecutor(12) as callers:
        first = [callers.submit(reason_of, lambda: create(database, "flag")) for _ in range(12)]
        outcomes = [each.result(TIMEOUT_S) for each in first]

    assert {reason for reason, _ in outcomes} == {"DATABASE_LOCKED"}
    # One wait for the lock, not one after the other.
    assert max(took_s for _, took_s in outcomes) < 2.0 + MARGIN_S


def cause_for_the_next_in_line(dsn: str, database: Database) -> BaseException | None:
    """Why PostgreSQL refused the writer who waits for its turn at the head row, and then for its holder."""
    with held(dsn, LOCK_HEAD) as holder, ThreadPoolExecutor(2) as callers:
        first = callers.submit(reason_of, lambda: create(database, "flag"))
        assert eventually(lambda: holder.execute(WAITS_FOR_THE_HOLDER).fetchone() == (1,))
        second = callers.submit(create, database, "flag")
        assert first.result(TIMEOUT_S)[0] == "DATABASE_LOCKED"
        refused = second.exception(TIMEOUT_S)
    assert isinstance(refused, ForeignLock)
    assert isinstance(refused.__cause__, psycopg.errors.LockNotAvailable)
    return refused.__cause__.__cause__


def test_two_waits_for_the_head_have_one_bound(dsn: str, database: Database) -> None:
    assert isinstance(cause_for_the_next_in_line(dsn, database), psycopg.errors.QueryCanceled)


def test_twin_without_it_each_wait_has_its_own(dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_HEAD_WAITS", 100)

    assert cause_for_the_next_in_line(dsn, database) is None


@pytest.mark.parametrize("statement", [LOCK_HEAD, "LOCK TABLE feature_flags"], ids=["head row", "table"])
def test_a_lock_of_our_own_that_is_stuck_is_refused_as_one(statement: str, dsn: str, database: Database) -> None:
    with held(dsn, statement, application="gatekeeper"):
        time.sleep(1.2)

        assert reason_of(lambda: create(database, "flag"))[0] == "DATABASE_LOCKED"


def test_writers_of_our_own_that_get_on_are_waited_for(dsn: str, database: Database) -> None:
    with ThreadPoolExecutor(1) as callers, held(dsn, LOCK_HEAD, application="gatekeeper") as holder:
        waiting = callers.submit(reason_of, lambda: create(database, "flag"))
        for _ in range(5):  # Longer than the bound of one wait.
            holder.execute("SELECT pg_sleep(0.3)")
        holder.rollback()

        assert waiting.result(TIMEOUT_S)[0] == "OK"


def test_writers_of_our_own_that_take_too_long_are_a_queue(dsn: str, database: Database) -> None:
    with ThreadPoolExecutor(1) as callers, held(dsn, LOCK_HEAD, application="gatekeeper") as holder:
        sleeping = callers.submit(holder.execute, "SELECT pg_sleep(60)")
        reason, _ = reason_of(lambda: create(database, "flag"))
        holder.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result(TIMEOUT_S)

    assert reason == "DATABASE_BUSY"


def test_racing_writers_all_get_their_turn(database: Database) -> None:
    assert eventually(lambda: reason_of(lambda: create(database, "first"))[0] == "OK")  # The pool is connected.

    with ThreadPoolExecutor(64) as callers:
        outcomes = list(callers.map(lambda number: reason_of(lambda: create(database, f"f{number}"))[0], range(64)))

    assert outcomes == ["OK"] * 64


def test_a_locked_table_refuses_its_readers_in_time(dsn: str, database: Database) -> None:
    flags = FlagStore(database, MutationRunner(database, KEYS.data))
    with held(dsn, "LOCK TABLE feature_flags"):
        reason, took_s = reason_of(lambda: flags.get("flag"))

    assert (reason, took_s < 2.0 + MARGIN_S) == ("DATABASE_LOCKED", True)


def test_the_bound_of_a_lock_follows_the_round_trips(database: Database) -> None:
    with database.read():
        pass
    assert (database._lock_timeout_s(), 0 < database.round_trip_s < TIMEOUT_S) == (1.0, True)

    database.round_trip_s = 0.5

    assert database._lock_timeout_s() == 4.0


# --- the caller -------------------------------------------------------------------------------------------------------


def test_a_statement_lasts_no_longer_than_the_caller_waits(
    database: Database, call: Callable[[FakeCall], None]
) -> None:
    def sleep() -> None:
        with database.read() as conn:
            conn.execute("SELECT pg_sleep(60)")

    call(FakeCall(left_s=0.3))
    reason, took_s = reason_of(sleep)

    assert (reason, took_s < 0.3 + MARGIN_S) == ("DATABASE_TIMEOUT", True)


def test_a_later_caller_is_not_limited_by_an_earlier_one(database: Database, call: Callable[[FakeCall], None]) -> None:
    call(FakeCall(left_s=0.2))
    with database.read() as conn:
        conn.execute("SELECT 1")
    call(FakeCall())

    for _ in range(3):
        with database.read() as conn:
            conn.execute("SELECT pg_sleep(0.4)")


def test_a_caller_who_has_gone_changes_nothing(database: Database, call: Callable[[FakeCall], None]) -> None:
    def change() -> None:
        with database.write() as conn:
            conn.execute(NEXT)
            call(FakeCall(is_here=False))

    with pytest.raises(CallAbandoned):
        change()
    call(FakeCall())

    with database.read() as conn:
        assert current_revision(conn) == 0


def test_a_caller_who_has_gone_gets_no_connection(database: Database, call: Callable[[FakeCall], None]) -> None:
    call(FakeCall(is_here=False))

    for _ in range(12):  # More than the pool has: none is lost.
        with pytest.raises(CallAbandoned), database.read():
            pytest.fail("nobody waits for it")
    call(FakeCall())

    with database.read() as conn:
        assert current_revision(conn) == 0


def test_a_failed_login_is_recorded_although_its_caller_has_gone(
    database: Database, call: Callable[[FakeCall], None]
) -> None:
    logins = LoginStore(database)
    call(FakeCall(is_here=False))
    logins.record_failure("mallory")
    call(FakeCall())

    assert [entry.event for entry in logins.list_events(AuthEventFilter(limit=10))] == [AuthEvent.LOGIN_FAILED]


# --- COPY -------------------------------------------------------------------------------------------------------------

LIMIT_S = 0.2
# More than buffers between server and reader hold.
COPY_20_MB = "COPY (SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n) TO STDOUT"
COPY_WITHOUT_END = "COPY (SELECT generate_series(1, 1000000000)) TO STDOUT"
COPY_THAT_STALLS = """
    COPY (SELECT n, pg_sleep(CASE n WHEN {} THEN {} ELSE 0 END) FROM generate_series(1, 3000) n) TO STDOUT
"""


@pytest.fixture
def impatient(dsn: str) -> Iterator[Database]:
    """A watched pool of one connection, whose statements may take 0.2 s."""
    with closing(Database(dsn, pool_size=1, statement_timeout_s=LIMIT_S, hung_after_s=0.75)) as database:
        database.open()
        assert eventually(lambda: database._watch._conn)
        yield database


def read_slowly(rows: Iterator[tuple[object, ...]]) -> int:
    next(rows)
    time.sleep(5 * LIMIT_S)
    return 1 + sum(1 for _ in rows)


def test_a_copy_may_take_as_long_as_its_reader(impatient: Database) -> None:
    with impatient.read() as conn:
        with impatient.copying(conn, COPY_20_MB, types=["int4", "text"]) as rows:
            count = read_slowly(rows)
        limit = conn.execute("SHOW statement_timeout").fetchone()

    assert (count, limit) == (20_000, ("200ms",))


def test_twin_with_the_limit_of_a_statement_it_may_not(impatient: Database) -> None:
    def copy() -> None:
        with impatient.read() as conn, conn.cursor().copy(COPY_20_MB) as copying:
            read_slowly(copying.rows())

    assert reason_of(copy)[0] == "DATABASE_TIMEOUT"


def copy_all(database: Database, statement: LiteralString) -> None:
    with database.read() as conn, database.copying(conn, statement, types=["int4", "text"]) as rows:
        for _ in rows:
            pass


@pytest.mark.parametrize("row", ["1", "2500"])
def test_a_copy_whose_rows_do_not_come_is_cut_in_time(row: LiteralString, impatient: Database) -> None:
    reason, took_s = reason_of(lambda: copy_all(impatient, COPY_THAT_STALLS.format(row, "60")))

    assert (reason, took_s < LIMIT_S + 1.0 + MARGIN_S) == ("UNAVAILABLE", True)


def test_twin_without_the_watch_its_rows_are_waited_for(impatient: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impatient._watch, "expect_answer", lambda *_, **__: None)

    assert reason_of(lambda: copy_all(impatient, COPY_THAT_STALLS.format("1", "6")))[0] == "OK"


def test_a_copy_is_bounded_by_its_rows_not_by_what_follows(impatient: Database) -> None:
    def copy_and_go_on() -> None:
        with impatient.read() as conn, impatient.copying(conn, COPY_20_MB, types=["int4", "text"]) as rows:
            assert len([*rows]) == 20_000
            time.sleep(2 * (LIMIT_S + 1.0) + 0.5)

    assert reason_of(copy_and_go_on)[0] == "OK"


def test_a_reader_that_fails_ends_its_copy_and_frees_the_connection(impatient: Database) -> None:
    def read_one() -> None:
        with impatient.read() as conn, impatient.copying(conn, COPY_WITHOUT_END, types=["int4"]) as rows:
            raise LookupError(next(rows))

    for _ in range(2):
        with pytest.raises(LookupError):
            read_one()
    with impatient.read() as conn:
        assert current_revision(conn) == 0


# --- COMMIT -----------------------------------------------------------------------------------------------------------

_STANDBY = "ALTER SYSTEM SET synchronous_standby_names = 'nobody'"
_NO_STANDBY = "ALTER SYSTEM RESET synchronous_standby_names"
_WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running_node() as node:
        Migrator(node.dsn).up()
        yield node


@contextmanager
def missing_standby(node: Node) -> Iterator[None]:
    """A synchronous standby that does not exist, for the length of the block."""
    node.run(_STANDBY)
    node.run("SELECT pg_reload_conf()")
    assert eventually(lambda: node.run("SHOW synchronous_standby_names") == [("nobody",)])
    try:
        yield
    finally:
        node.run(_NO_STANDBY)
        node.run("SELECT pg_reload_conf()")


@pytest.fixture
def watched(node: Node) -> Iterator[Database]:
    with closing(Database(node.dsn, hung_after_s=0.75)) as database:
        database.open()
        assert eventually(lambda: database._watch._conn)
        yield database


def test_a_commit_without_its_standby_is_bounded_and_can_be_repeated(node: Node, watched: Database) -> None:
    request_id = uuid4()
    intent = Intent(caller=None, action="CreateFlag", request_id=request_id, request_hash=b"1")
    flags = FlagStore(watched, MutationRunner(watched, KEYS.data))
    with capture_logs() as logs:
        with missing_standby(node):
            unknown, took_s = reason_of(lambda: flags.create(FlagConfig(key="unconfirmed"), intent))
            stalled, refused_s = reason_of(lambda: flags.create(FlagConfig(key="another"), intent))
        assert eventually(lambda: not watched.has_stalled_commits())
    repeated = flags.create(FlagConfig(key="unconfirmed"), intent)

    assert (unknown, stalled) == ("OUTCOME_UNKNOWN", "COMMITS_STALLED")
    assert took_s < 2.0 + MARGIN_S
    assert refused_s < MARGIN_S
    assert (repeated.result.config.key, repeated.revision) == ("unconfirmed", flags.get("unconfirmed").revision)
    events = [log["event"] for log in logs]
    assert [event for event in events if event.startswith("commit")] == ["commit_unanswered", "commits_settled"]


def test_reads_go_on_while_commits_are_stalled(node: Node, watched: Database) -> None:
    with missing_standby(node):
        assert reason_of(lambda: create(watched, uuid4().hex))[0] == "OUTCOME_UNKNOWN"
        with watched.read() as conn:
            current_revision(conn)
        assert watched.has_stalled_commits()
    assert eventually(lambda: not watched.has_stalled_commits())


def record_a_read(database: Database) -> None:
    with database.read_and_record() as conn:
        set_current_caller(Caller(admin_id=1, username="ann", role=Role.VIEWER, token_epoch=1))
        record_access(conn, AccessEvent.USER_READ, [uuid4()])


def test_reads_of_people_are_recorded_while_commits_are_stalled(node: Node, watched: Database) -> None:
    logins = LoginStore(watched)
    with missing_standby(node):
        assert reason_of(lambda: create(watched, uuid4().hex))[0] == "OUTCOME_UNKNOWN"
        copy_context().run(record_a_read, watched)
        assert watched.has_stalled_commits()
        (event, *_) = logins.list_events(AuthEventFilter(limit=10))
    assert eventually(lambda: not watched.has_stalled_commits())

    assert (event.event, event.actor, event.subject_count) == ("user_read", "admin:ann#1", 1)


def cancelled_commit(node: Node, database: Database) -> tuple[str, float]:
    """The outcome of a commit whose wait for the standby an operator cancels."""
    with missing_standby(node), ThreadPoolExecutor(1) as callers:
        committing: Future[tuple[str, float]] = callers.submit(reason_of, lambda: create(database, uuid4().hex))
        assert eventually(lambda: node.run(_WAITING))
        node.run("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        return committing.result(TIMEOUT_S)


def test_a_cancelled_wait_for_a_standby_is_not_a_success(node: Node) -> None:
    with closing(Database(node.dsn)) as database:
        database.open()

        assert cancelled_commit(node, database)[0] == "OUTCOME_UNKNOWN"


def test_twin_without_its_warning_the_cancelled_wait_is_a_success(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Warnings, "note", lambda *_: None)
    with closing(Database(node.dsn)) as database:
        database.open()

        assert cancelled_commit(node, database)[0] == "OK"


def test_a_connection_lost_before_the_commit_is_not_an_unknown_outcome(node: Node, watched: Database) -> None:
    def change() -> None:
        with watched.write() as conn:
            conn.execute(NEXT)
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(Unavailable) as refused:
        change()

    assert not isinstance(refused.value, OutcomeUnknown)


def test_a_statement_that_does_not_end_is_cut_when_the_caller_has_gone(
    node: Node, watched: Database, call: Callable[[FakeCall], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_milliseconds", lambda _: "600000")  # The server has no limit of its own.
    call(FakeCall(left_s=0.2))

    def sleep() -> None:
        with watched.read() as conn:
            conn.execute("SELECT pg_sleep(60)")

    reason, took_s = reason_of(sleep)

    assert (reason, took_s < 1.2 + MARGIN_S) == ("UNAVAILABLE", True)
    assert not watched.has_stalled_commits()
