"""The mutation protocol against a real PostgreSQL: the statements under the head lock, and the times of revisions."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.commands import FlagUpdate
from gatekeeper_grpc.domain.errors import FailedPrecondition, Unauthenticated
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.store import mutations as mutations_module
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Connection, Database
from tests.support.servers import KEYS, begin_session

SYSTEM = Intent(caller=None, action="Test")
WRITERS = 8


@pytest.fixture
def flags(database: Database) -> FlagStore:
    """A flag store with one flag, `alpha`."""
    flags = FlagStore(database, MutationRunner(database, KEYS.data))
    flags.create(FlagConfig(key="alpha"), SYSTEM)
    return flags


@pytest.fixture
def editor(database: Database) -> Caller:
    """An admin user with a current token."""
    LoginStore(database).ensure_first_admin("anna", "hash")
    with database.read() as conn:
        row = conn.execute("SELECT admin_id, token_epoch FROM admin_user").fetchone()
        assert row
    with database.write() as conn:
        session_id = begin_session(conn, row[0])
    return Caller(admin_id=row[0], username="anna", role=Role.ADMIN, token_epoch=row[1], session_id=session_id)


def rename(flags: FlagStore, owner: str, caller: Caller | None = None) -> None:
    flags.update(FlagUpdate(key="alpha", changes={"owner": owner}), Intent(caller=caller, action="UpdateFlag"))


@contextmanager
def recorded_statements() -> Iterator[list[str]]:
    """The statements that are executed during the block, without BEGIN and COMMIT."""
    statements: list[str] = []
    execute: Any = psycopg.Cursor.execute

    def recording(cursor: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        statements.append(" ".join(str(query).split()))
        return execute(cursor, query, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", recording)
        yield statements


def after_the_lock(statements: list[str]) -> list[str]:
    """The first words of the statements that follow the one that locks the head."""
    (lock,) = [nth for nth, statement in enumerate(statements) if "FOR UPDATE" in statement]
    return [statement.split("(")[0] for statement in statements[lock + 1 :]]


def test_an_update_executes_four_statements_under_the_head_lock(flags: FlagStore, editor: Caller) -> None:
    with recorded_statements() as statements:
        rename(flags, "bob", editor)

    clock_and_caller, find, update, record = after_the_lock(statements)
    assert clock_and_caller == "SELECT clock_timestamp"
    assert find.startswith("SELECT key, description")
    assert update.startswith("UPDATE feature_flags")
    assert record.startswith("WITH made AS")


def test_twin_one_more_statement_under_the_lock_is_counted(
    flags: FlagStore, editor: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = mutations_module._record

    def with_another_statement(conn: Connection, *arguments: Any) -> Any:
        conn.execute("SELECT 1")
        return record(conn, *arguments)

    monkeypatch.setattr(mutations_module, "_record", with_another_statement)
    with recorded_statements() as statements:
        rename(flags, "bob", editor)

    assert len(after_the_lock(statements)) == 5


def test_a_caller_whose_token_is_outdated_is_refused_under_the_lock(flags: FlagStore, editor: Caller) -> None:
    outdated = replace(editor, token_epoch=editor.token_epoch - 1)

    with recorded_statements() as statements, pytest.raises(Unauthenticated):
        rename(flags, "mallory", outdated)

    assert after_the_lock(statements) == ["SELECT clock_timestamp"]
    assert flags.get("alpha").result.config.owner == ""


def create_times(database: Database) -> list[datetime]:
    """The times of all revisions, in the order of revisions."""
    with database.read() as conn:
        return [time for (time,) in conn.execute("SELECT create_time FROM audit_log ORDER BY revision")]


def test_times_rise_with_revisions_under_concurrent_writers(flags: FlagStore, database: Database) -> None:
    rename(flags, "first")  # The pool is connected.

    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(lambda nth: rename(flags, f"owner-{nth}"), range(10 * WRITERS)))

    times = create_times(database)
    assert len(times) == 2 + 10 * WRITERS
    assert times == sorted(set(times))


def times_of_two_writers(flags: FlagStore, database: Database) -> tuple[datetime, datetime]:
    """The times of two revisions; the transaction of the second began before the first was made."""
    with database.write() as second:
        second.execute("SELECT 1")
        rename(flags, "first")
        head, *_ = mutations_module._lock_head(second, Intent(caller=None, action="Test"), database.limits_at_head())
    return create_times(database)[-1], head.create_time


def test_a_writer_that_waited_for_the_lock_gets_the_later_time(flags: FlagStore, database: Database) -> None:
    first, second = times_of_two_writers(flags, database)

    assert first < second


def test_twin_with_the_time_of_the_transaction_it_gets_an_earlier_one(
    flags: FlagStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_begin = mutations_module._READ_CLOCK_AND_CALLER.replace("clock_timestamp()", "transaction_timestamp()")
    monkeypatch.setattr(mutations_module, "_READ_CLOCK_AND_CALLER", at_begin)

    first, second = times_of_two_writers(flags, database)

    assert first > second


def test_a_retry_whose_result_cannot_be_read_gets_a_plain_answer(
    flags: FlagStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    retried = replace(SYSTEM, action="CreateFlag", request_id=uuid4())
    created = flags.create(FlagConfig(key="beta"), retried)
    monkeypatch.setattr("gatekeeper_grpc.store.flags._CODEC", TypeAdapter(int))

    with pytest.raises(FailedPrecondition, match="read the resource instead") as refusal:
        flags.create(FlagConfig(key="beta"), retried)

    assert refusal.value.metadata == {"revision": str(created.revision)}
    assert flags.get("beta").revision == created.revision
