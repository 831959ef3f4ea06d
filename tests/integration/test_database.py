"""The pool, its two kinds of transaction, and the translation of PostgreSQL's errors."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import LiteralString

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql
from psycopg_pool import ConnectionPool
from psycopg_pool.base import AttemptWithBackoff

from gatekeeper_grpc.domain.errors import (
    Busy,
    GatekeeperError,
    InvalidArgument,
    Unavailable,
)
from gatekeeper_grpc.store.postgres import database as database_module
from gatekeeper_grpc.store.postgres import servers as servers_module
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision, one
from tests.support.databases import database_name
from tests.support.outages import cut_connections, outage
from tests.support.waiting import eventually

NEXT = "UPDATE revision_head SET revision = revision + 1"


def revision(database: Database) -> int:
    with database.read() as conn:
        return current_revision(conn)


def test_a_write_is_committed_at_the_end_of_its_block(database: Database) -> None:
    with database.write() as conn:
        conn.execute(NEXT)

    assert revision(database) == 1


def test_a_write_is_rolled_back_when_anything_is_raised(database: Database) -> None:
    def fail(conn: Connection) -> None:
        conn.execute(NEXT)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), database.write() as conn:
        fail(conn)

    assert revision(database) == 0


def test_a_read_sees_one_state_while_others_commit(database: Database) -> None:
    with database.read() as reading:
        before = current_revision(reading)
        with database.write() as writing:
            writing.execute(NEXT)
        after = current_revision(reading)

    assert (before, after, revision(database)) == (0, 0, 1)


def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(Unavailable), database.read() as conn:
        conn.execute(NEXT)

    assert revision(database) == 0


def test_times_are_utc_in_every_zone_of_the_server(dsn: str, database: Database) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = sql.Identifier(conn.info.dbname)
        conn.execute(sql.SQL("ALTER DATABASE {} SET timezone = 'Asia/Tokyo'").format(name))
    fresh = Database(dsn)
    fresh.open()
    with fresh.read() as reading:
        (now,) = one(reading.execute("SELECT now()"))
    fresh.close()

    assert now.utcoffset() == timedelta(0)


def test_a_statement_that_takes_too_long_is_cancelled(dsn: str) -> None:
    fail_fast = Database(dsn, statement_timeout_s=0.05)
    fail_fast.open()

    with pytest.raises(Unavailable), fail_fast.read() as conn:
        conn.execute("SELECT pg_sleep(60)")

    assert revision(fail_fast) == 0
    fail_fast.close()


def test_a_call_that_finds_every_connection_taken_is_refused_in_time(dsn: str) -> None:
    small = Database(dsn, pool_size=2, pool_wait_s=0.05)
    small.open()
    small._pool.wait()
    with ExitStack() as holders:
        for _ in range(2):
            holders.enter_context(small.read())
        with pytest.raises(Busy) as refused:
            revision(small)

    assert refused.value.reason == "DATABASE_BUSY"

    assert revision(small) == 0
    small.close()


def answers_after_all_connections_died(database: Database, postgres: str) -> bool:
    """Return whether the first call succeeds after two idle connections have died."""
    database._pool.wait()
    with psycopg.connect(postgres, autocommit=True) as conn:
        assert cut_connections(database_name(database.dsn), conn) == 2
    return answers(database)


def answers(database: Database) -> bool:
    try:
        return revision(database) == 0
    except Unavailable:
        return False


@pytest.fixture
def fail_fast(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A pool with short timeouts."""
    monkeypatch.setattr(servers_module, "_CONNECT_TIMEOUT_S", 0.4)
    database = Database(dsn, pool_wait_s=0.2)
    database.open()
    yield database
    database.close()


def test_dead_connections_are_replaced_before_they_are_handed_out(fail_fast: Database, postgres: str) -> None:
    assert answers_after_all_connections_died(fail_fast, postgres)


def test_twin_with_the_pools_own_check_two_dead_connections_fail_a_call(fail_fast: Database, postgres: str) -> None:
    fail_fast._pool._check = ConnectionPool.check_connection

    assert not answers_after_all_connections_died(fail_fast, postgres)


def answers_after_an_outage(database: Database, postgres: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether the first call succeeds once the database is back."""
    assert eventually(lambda: answers(database))  # On a busy machine, the first connection takes a while.
    with outage(postgres, database.dsn):
        assert [answers(database) for _ in range(16)] == [False] * 16
    # On a busy machine a connection takes a while. The twin's back-off is longer.
    monkeypatch.setattr(database, "_pool_wait_s", 10.0)
    return answers(database)


def test_the_first_call_after_an_outage_is_answered(
    fail_fast: Database, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers_after_an_outage(fail_fast, postgres, monkeypatch)


def test_twin_with_the_back_off_of_the_pool_it_is_not(
    fail_fast: Database, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_fast._pool.reconnect_timeout = 300.0
    monkeypatch.setattr(AttemptWithBackoff, "INITIAL_DELAY", 60.0)  # However slow this machine is.

    assert not answers_after_an_outage(fail_fast, postgres, monkeypatch)


def test_a_closed_pool_refuses_calls(dsn: str) -> None:
    closed = Database(dsn)
    closed.open()
    closed.close()

    with pytest.raises(Unavailable):
        revision(closed)


def test_an_unreachable_database_is_unavailable_without_the_drivers_words() -> None:
    away = Database("host=/nowhere/canary user=canary password=canary dbname=canary", pool_wait_s=0.05)
    away.open()

    with pytest.raises(Unavailable) as refused:
        revision(away)

    away.close()
    assert (str(refused.value), refused.value.retry_after_s) == ("the database is not reachable", 1.0)


def test_a_database_that_is_away_is_not_busy_however_often_it_is_asked() -> None:
    away = Database("host=/nowhere user=gatekeeper dbname=gatekeeper", pool_wait_s=0.01)
    away.open()
    reasons = set()
    for _ in range(2 * database_module._MAX_WAITING):  # The pool counts those who gave up as waiting.
        with pytest.raises(GatekeeperError) as refused:
            revision(away)
        reasons.add(refused.value.reason)
    away.close()

    assert reasons == {"UNAVAILABLE"}


def test_with_a_full_disk_reads_are_served_and_writes_do_not_begin(dsn: str) -> None:
    full = Database(dsn, is_storage_full=lambda: True)
    full.open()
    assert revision(full) == 0
    with pytest.raises(Unavailable) as refused, full.write():
        pytest.fail("the transaction began")
    full.close()

    assert refused.value.reason == "STORAGE_FULL"


def raising(error: Exception) -> Callable[[Connection], object]:
    def act(_conn: Connection) -> None:
        raise error

    return act


def running(statement: LiteralString) -> Callable[[Connection], object]:
    return lambda conn: conn.execute(statement)


@pytest.mark.parametrize(
    ("act", "kind", "reason"),
    [
        pytest.param(
            running(r"""SELECT '"\u0000"'::jsonb ->> 0"""), InvalidArgument, "INVALID_ARGUMENT", id="NUL in JSON"
        ),
        pytest.param(raising(pg.AdminShutdown()), Unavailable, "UNAVAILABLE", id="shut down"),
        pytest.param(raising(pg.DiskFull()), Unavailable, "STORAGE_FULL", id="disk full"),
        pytest.param(running("SELECT pg_terminate_backend(pg_backend_pid())"), Unavailable, "UNAVAILABLE", id="killed"),
    ],
)
def test_errors_of_postgresql_become_domain_errors(
    act: Callable[[Connection], object], kind: type[GatekeeperError], reason: str, database: Database
) -> None:
    with pytest.raises(kind) as refused, database.write() as conn:
        act(conn)

    assert refused.value.reason == reason


def test_a_violated_constraint_is_a_bug_and_passes_unchanged(database: Database) -> None:
    with pytest.raises(pg.CheckViolation), database.write() as conn:
        conn.execute("UPDATE revision_head SET audit_hash = ''")


def test_a_pool_keeps_the_connections_that_it_is_told_to(dsn: str) -> None:
    with closing(Database(dsn, pool_size=5, pool_min_size=3)) as kept:
        kept.open()

        assert eventually(lambda: kept.connections()["idle"] == 3)


def test_a_pool_without_a_minimum_connects_when_it_is_used(dsn: str) -> None:
    with closing(Database(dsn, pool_size=5, pool_min_size=0)) as empty:
        empty.open()
        assert empty.connections()["idle"] == 0
        with empty.read() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
