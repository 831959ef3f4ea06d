"""What the store does again by itself, and what it must not."""

import ast
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import gatekeeper_grpc.store
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, ResourceType, Written
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import NOTHING, Effect, Head, MutationRunner
from gatekeeper_grpc.store.postgres import retries
from gatekeeper_grpc.store.postgres.database import Connection, Database, current_revision
from gatekeeper_grpc.store.postgres.errors import ConnectionLost, WriteConflict
from gatekeeper_grpc.store.postgres.retries import retry_conflicts, retry_lost_read
from tests.support.databases import database_name
from tests.support.servers import KEYS
from tests.support.waiting import eventually

CUT = "SELECT pg_terminate_backend(pg_backend_pid())"
DEADLOCK = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$"
SERIALIZATION_FAILURE = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"


@pytest.fixture
def dsn(dsn: str) -> str:
    """A database that finds a deadlock long before a lock has been waited for too long."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        name = sql.Identifier(database_name(dsn))
        conn.execute(sql.SQL("ALTER DATABASE {} SET deadlock_timeout = '50ms'").format(name))
    return dsn


class Reader:
    """Reads, and is disturbed the first few times."""

    def __init__(self, database: Database, *disturbances: str) -> None:
        self._database = database
        self._disturbances = list(disturbances)
        self.reads = 0

    def read(self) -> int:
        self.reads += 1
        with self._database.read() as conn:
            revision = current_revision(conn)
            if self._disturbances:
                conn.execute(self._disturbances.pop().encode())
            return revision


class Writer(Reader):
    def write(self) -> None:
        self.reads += 1
        with self._database.write() as conn:
            conn.execute("UPDATE revision_head SET revision = revision + 1")
            if self._disturbances:
                conn.execute(self._disturbances.pop().encode())


@pytest.mark.parametrize("disturbance", [CUT, SERIALIZATION_FAILURE], ids=["connection lost", "ended by a standby"])
def test_a_read_that_lost_its_connection_is_done_once_more(disturbance: str, database: Database) -> None:
    reader = Reader(database, disturbance)

    assert (retry_lost_read(reader.read)(), reader.reads) == (0, 2)


def test_twin_without_the_retry_it_fails(database: Database) -> None:
    with pytest.raises(ConnectionLost):
        Reader(database, CUT).read()


def test_a_read_is_not_done_a_third_time(database: Database) -> None:
    reader = Reader(database, CUT, CUT, CUT)
    with pytest.raises(ConnectionLost):
        retry_lost_read(reader.read)()

    assert reader.reads == 2


@pytest.mark.parametrize("failure", [DEADLOCK, SERIALIZATION_FAILURE], ids=["deadlock", "serialisation failure"])
def test_a_write_that_conflicts_is_repeated_and_its_first_try_undone(failure: str, database: Database) -> None:
    writer = Writer(database, failure, failure)
    retry_conflicts(writer.write)()

    assert (writer.read(), writer.reads) == (1, 4)


def test_a_write_that_conflicts_again_and_again_gives_up(database: Database) -> None:
    writer = Writer(database, *[DEADLOCK] * 10)
    with pytest.raises(WriteConflict):
        retry_conflicts(writer.write)()

    assert writer.reads == retries._WRITE_ATTEMPTS


def test_a_write_that_lost_its_connection_is_not_repeated(database: Database) -> None:
    writer = Writer(database, CUT)
    with pytest.raises(ConnectionLost):
        retry_conflicts(writer.write)()

    assert writer.reads == 1


_IS_WAITING = "SELECT FROM pg_locks WHERE pid = %s AND NOT granted"


def mutation_that_deadlocks_with(other: Connection, database: Database) -> Written[None]:
    """A mutation holds the head, which another transaction wants, and then wants a row that this one holds."""
    mutations = MutationRunner(database, KEYS.data)
    flags = FlagStore(database, mutations)
    flags.create(FlagConfig(key="contended"), Intent(caller=None, action="CreateFlag"))
    other.execute("SET deadlock_timeout = '30s'")  # It is the mutation that PostgreSQL finds first, and undoes.
    other.execute("BEGIN")
    other.execute("SELECT FROM feature_flags WHERE key = 'contended' FOR UPDATE")

    def want_the_head() -> None:
        other.execute("SELECT FROM revision_head FOR UPDATE")
        other.execute("COMMIT")

    def act(conn: Connection, _head: Head) -> Effect[None]:
        if not wanting:
            wanting.append(thread.submit(want_the_head))
            assert eventually(lambda: conn.execute(_IS_WAITING, [other.info.backend_pid]).rowcount)
        conn.execute("UPDATE feature_flags SET description = 'new' WHERE key = 'contended'")
        return flags_effect()

    wanting: list[Future[None]] = []
    with ThreadPoolExecutor(1) as thread:
        return mutations.mutate(Intent(caller=None, action="Test"), act, codec=NOTHING)


def flags_effect() -> Effect[None]:
    change = Change(resource=ResourceType.FLAG, key="contended", change=ChangeType.UPDATED, document={})
    return Effect(result=None, preview=None, change=change)


def test_a_mutation_that_deadlocks_with_a_transaction_still_succeeds(dsn: str, database: Database) -> None:
    with psycopg.connect(dsn, autocommit=True) as other:
        assert mutation_that_deadlocks_with(other, database).revision == 2


def test_twin_without_the_retry_it_fails_although_nothing_is_wrong_with_it(
    dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_WRITE_ATTEMPTS", 1)
    with psycopg.connect(dsn, autocommit=True) as other, pytest.raises(WriteConflict):
        mutation_that_deadlocks_with(other, database)


def methods_that(use: str) -> list[tuple[str, bool, list[str]]]:
    """Every method of the store that opens a transaction: its name, whether it yields, and its decorators."""
    found: list[tuple[str, bool, list[str]]] = []
    for path in sorted(Path(gatekeeper_grpc.store.__path__[0]).rglob("*.py")):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and f"database.{use}() as" in (
                ast.get_source_segment(source, node) or ""
            ):
                yields = any(isinstance(part, ast.Yield | ast.YieldFrom) for part in ast.walk(node))
                found.append((f"{path.stem}.{node.name}", yields, [ast.unparse(name) for name in node.decorator_list]))
    return found


def test_every_reading_method_of_the_store_survives_a_lost_connection() -> None:
    found = methods_that("read")

    assert len(found) > 20
    # What yields as it reads cannot begin again: some of it is with the caller already.
    assert [name for name, yields, decorators in found if not yields and "retry_lost_read" not in decorators] == []


def test_every_method_of_the_store_that_writes_survives_a_conflict() -> None:
    found = methods_that("write")

    assert len(found) > 8
    assert [name for name, yields, decorators in found if not yields and "retry_conflicts" not in decorators] == []
