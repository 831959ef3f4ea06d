"""Every SQLSTATE has a decision, and what a real server refuses reaches callers, log and metric as what it is."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from threading import Semaphore
from typing import LiteralString

import psycopg
import pytest
from prometheus_client import generate_latest
from prometheus_client.core import CollectorRegistry
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from structlog.testing import capture_logs

from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.errors import GatekeeperError, Unavailable
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.lifecycle.startup import DEFAULT_TIMEOUTS, Startup
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.postgres import errors, libpq
from gatekeeper_grpc.store.postgres import servers as servers_module
from gatekeeper_grpc.store.postgres.database import Connection, Database
from gatekeeper_grpc.store.postgres.errors import (
    DATABASE_ERRORS,
    ConnectionLost,
    DatabaseErrors,
    WriteConflict,
    translated,
)
from gatekeeper_grpc.store.postgres.servers import Refusals, Servers, _Attempt
from gatekeeper_grpc.store.postgres.sqlstates import _CLASSES, _CODES, cause_of, label_of
from tests.support.outages import outage
from tests.support.servers import KEYS
from tests.support.waiting import TIMEOUT_S, eventually

pytestmark = pytest.mark.promise("F5")

KNOWN = sorted(code for code in pg._sqlcodes if re.fullmatch("[0-9A-Z]{5}", code) and not code.isalpha())


@pytest.fixture(autouse=True)
def own_counts(monkeypatch: pytest.MonkeyPatch) -> DatabaseErrors:
    """Counts of this test alone, of which the first of each kind is logged."""
    own = DatabaseErrors()
    monkeypatch.setattr(errors, "DATABASE_ERRORS", own)
    return own


@pytest.fixture(autouse=True)
def own_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits because of an account that another test was refused."""
    monkeypatch.setattr(servers_module, "_REFUSALS", Refusals())


def test_every_class_of_sqlstates_has_a_decision() -> None:
    assert {code[:2] for code in KNOWN} - _CLASSES.keys() == set()
    assert {code for code in _CODES if code[:2] not in _CLASSES} == set()


@pytest.mark.parametrize("code", KNOWN)
def test_every_sqlstate_is_translated_by_its_decision(code: str) -> None:
    cause, error = cause_of(code), translated(pg.lookup(code)())

    assert (error and (error.reason, str(error))) == (cause and (cause.reason, cause.text))


def test_labels_are_of_bounded_variety() -> None:
    labels = {label_of(code) for code in KNOWN} | {label_of(None), label_of("ZZ999")}

    assert labels <= {*_CODES, *_CLASSES, "none", "other"}


def test_a_lost_connection_and_a_conflict_are_told_apart_for_retries() -> None:
    kinds = [type(translated(pg.lookup(code)())) for code in ("57P01", "57P02", "40001", "40P01", "53100")]

    assert kinds == [ConnectionLost, ConnectionLost, WriteConflict, WriteConflict, Unavailable]


# --- what a real server sends -----------------------------------------------------------------------------------------

RUN: dict[str, tuple[LiteralString, str | None]] = {
    "22P05": (r"""SELECT '"\u0000"'::jsonb ->> 0""", "INVALID_ARGUMENT"),
    "23514": ("UPDATE revision_head SET audit_hash = ''", None),
    "25006": ("SET TRANSACTION READ ONLY; UPDATE revision_head SET revision = 1", "DATABASE_READ_ONLY"),
    "3F000": ("CREATE TABLE nowhere.x ()", "DATABASE_SCHEMA_UNFIT"),
    "42601": ("SELEKT", None),
    "42703": ("SELECT nothing FROM revision_head", "DATABASE_SCHEMA_UNFIT"),
    "42883": ("SELECT nothing()", "DATABASE_SCHEMA_UNFIT"),
    "42P01": ("SELECT FROM nothing", "DATABASE_SCHEMA_UNFIT"),
    "42501": ("SET LOCAL ROLE pg_monitor; SELECT FROM revision_head", "DATABASE_PERMISSION_DENIED"),
    "40001": ("DO $$BEGIN RAISE SQLSTATE '40001'; END$$", "UNAVAILABLE"),
    "53100": ("DO $$BEGIN RAISE SQLSTATE '53100'; END$$", "STORAGE_FULL"),
    "53200": ("DO $$BEGIN RAISE SQLSTATE '53200'; END$$", "DATABASE_OVERLOADED"),
    "53400": ("SET LOCAL temp_file_limit = 1; SELECT count(*) FROM generate_series(1, 500000)", "DATABASE_OVERLOADED"),
    "57014": ("SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)", "DATABASE_TIMEOUT"),
    "57P01": ("SELECT pg_terminate_backend(pg_backend_pid())", "UNAVAILABLE"),
    "58P01": ("COPY revision_head FROM '/nowhere'", "STORAGE_FAILED"),
    "P0001": ("DO $$BEGIN RAISE 'no'; END$$", None),
    "XX001": ("DO $$BEGIN RAISE SQLSTATE 'XX001'; END$$", "STORAGE_FAILED"),
}  # fmt: skip


@pytest.mark.parametrize("code", RUN)
def test_an_error_in_a_transaction_is_what_it_is(code: str, database: Database, own_counts: DatabaseErrors) -> None:
    statement, reason = RUN[code]

    def act(conn: Connection) -> None:
        for each in statement.split(";") if "DO" not in statement else [statement]:
            conn.execute(each.encode())

    with capture_logs() as logs, pytest.raises((GatekeeperError, psycopg.Error)) as raised, database.write() as conn:
        act(conn)

    error = raised.value
    assert (error.reason if isinstance(error, GatekeeperError) else None) == reason
    assert own_counts.counts() == {label_of(code): 1}
    (line,) = [log for log in logs if log["event"] == "database_error"]
    assert (line["sqlstate"], line["reason"]) == (code, reason or "INTERNAL")


def refused_connection(dsn: str) -> Unavailable:
    """How a call on a pool is refused that cannot connect."""
    with closing(Database(dsn)) as database:
        database.open()
        assert eventually(lambda: database._servers.last_failure)  # Before it, a call that gives up knows no reason.
        with pytest.raises(Unavailable) as refused, database.read():
            pytest.fail("it cannot connect")
    return refused.value


@pytest.fixture
def refusing(dsn: str, postgres: str) -> Iterator[Callable[[str], str]]:
    """Makes a DSN that is refused with a SQLSTATE."""
    with ExitStack() as stack:

        def dsn_for(code: str) -> str:
            match code:
                case "3D000":
                    return make_conninfo(dsn, dbname="nowhere")
                case "28000":
                    return make_conninfo(dsn, user="nobody")
                case "55000":
                    stack.enter_context(outage(postgres, dsn))
                    return dsn
                case "53300":
                    conn = stack.enter_context(psycopg.connect(postgres, autocommit=True))
                    conn.execute("CREATE ROLE visitor LOGIN CONNECTION LIMIT 0")
                    stack.callback(conn.execute, "DROP ROLE visitor")
                    return make_conninfo(dsn, user="visitor")
                case _:
                    conn = stack.enter_context(psycopg.connect(postgres, autocommit=True))
                    conn.execute("CREATE ROLE visitor LOGIN")
                    stack.callback(conn.execute, "DROP ROLE visitor")
                    name = conn.execute("SELECT quote_ident(%s)", [conninfo_to_dict(dsn)["dbname"]])
                    conn.execute(f"REVOKE CONNECT ON DATABASE {name.fetchall()[0][0]} FROM PUBLIC".encode())
                    return make_conninfo(dsn, user="visitor")

        yield dsn_for


REFUSED = {
    "3D000": "DATABASE_MISSING",
    "28000": "DATABASE_CREDENTIALS_REFUSED",
    "42501": "DATABASE_PERMISSION_DENIED",
    "53300": "DATABASE_TOO_MANY_CONNECTIONS",
    "55000": "DATABASE_NOT_ACCEPTING",
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_refused_connection_is_refused_for_its_reason(
    code: str, refusing: Callable[[str], str], own_counts: DatabaseErrors
) -> None:
    error = refused_connection(refusing(code))

    assert (error.reason, own_counts.counts()) == (REFUSED[code], {label_of(code): 1})


@pytest.mark.parametrize("code", REFUSED)
def test_a_refused_migration_is_refused_for_its_reason(code: str, refusing: Callable[[str], str]) -> None:
    with pytest.raises(Unavailable, match=rf"refuses: .* \(SQLSTATE {code}\)") as refused:
        Migrator(refusing(code), connect_timeout_s=2).verify()

    assert refused.value.reason == REFUSED[code]


def test_twin_without_libpqs_help_the_reason_is_unknown(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libpq, "_set_verbosity", lambda: lambda _pgconn, _verbosity: None)

    assert refused_connection(make_conninfo(dsn, dbname="nowhere")).reason == "UNAVAILABLE"


def test_a_wrong_account_is_tried_once_for_a_connection(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr("gatekeeper_grpc.store.postgres.servers.tell_sqlstate", tried.append)
    monkeypatch.setattr("gatekeeper_grpc.store.postgres.servers.sqlstate_of", lambda _: "28P01")
    with pytest.raises(psycopg.OperationalError):
        Servers(make_conninfo(dsn, user="nobody")).connect()

    assert len(tried) == 1


def attempts_with_a_wrong_account(dsn: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a pool whose account is refused tries, while a call waits for a second."""
    attempts = failed_attempts(monkeypatch)
    assert refused_connection(make_conninfo(dsn, user="nobody")).reason == "DATABASE_CREDENTIALS_REFUSED"
    return len(attempts)


def failed_attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the words of each attempt to connect that fails."""
    attempts: list[str] = []
    fail = _Attempt._fail

    def counted(attempt: _Attempt, message: str) -> None:
        attempts.append(message)
        fail(attempt, message)

    monkeypatch.setattr(_Attempt, "_fail", counted)
    return attempts


def test_a_pool_does_not_hammer_a_server_that_refuses_its_account(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempts_with_a_wrong_account(dsn, monkeypatch) < 10


def test_twin_without_the_pause_the_pool_tries_as_fast_as_it_can(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_module, "_RETRY_REFUSED_S", 0.0)

    assert attempts_with_a_wrong_account(dsn, monkeypatch) > 10


def attempts_of_a_start(dsn: str, monkeypatch: pytest.MonkeyPatch, *, pause_s: float) -> int:
    """How often a start whose account is refused tries, while it prepares its database three times."""
    monkeypatch.setattr(servers_module, "_RETRY_REFUSED_S", pause_s)
    prepared, attempts = Semaphore(0), failed_attempts(monkeypatch)
    migrator = Migrator(make_conninfo(dsn, user="nobody-starts"), connect_timeout_s=1)

    def prepare() -> None:
        prepared.release()
        migrator.verify()

    startup = Startup(
        SnapshotCache(stale_after_s=1.0, max_waiters=1),
        [],
        sealer=KEYS.data,
        prepare=prepare,
        open_database=pytest.fail,
        timeouts=DEFAULT_TIMEOUTS,
    )
    startup.start()
    assert all(prepared.acquire(timeout=TIMEOUT_S) for _ in range(3))
    startup.close()
    return len(attempts)


def test_a_start_does_not_hammer_it_either(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempts_of_a_start(dsn, monkeypatch, pause_s=TIMEOUT_S) == 1


def test_twin_without_the_pause_a_start_tries_each_time(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempts_of_a_start(dsn, monkeypatch, pause_s=0.0) > 1


def test_of_all_that_connect_with_a_refused_account_one_tries(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_module, "_RETRY_REFUSED_S", TIMEOUT_S)
    attempts, refused = failed_attempts(monkeypatch), make_conninfo(dsn, user="nobody-shares")
    for timeout_s in (TIMEOUT_S, 0.0, 0.0):
        with pytest.raises(psycopg.OperationalError, match="28000"):
            Servers(refused).connect(timeout_s=timeout_s)

    assert len(attempts) == 1


def test_words_of_later_errors_are_not_lost(dsn: str) -> None:
    with closing(Servers(dsn).connect()) as conn, pytest.raises(psycopg.errors.UndefinedTable, match="nothing"):
        conn.execute("SELECT FROM nothing")


def test_errors_that_go_on_are_one_line_in_the_log_and_all_in_the_metric(own_counts: DatabaseErrors) -> None:
    with capture_logs() as logs:
        for _ in range(100):
            own_counts.note(pg.DiskFull("secret"), reason="STORAGE_FULL")

    assert [(log["event"], log["sqlstate"], log["count"]) for log in logs] == [("database_error", "53100", 1)]
    assert own_counts.counts() == {"53100": 100}
    assert "secret" not in str(logs)


def test_the_metrics_of_an_instance_have_the_errors(server: GatekeeperServer) -> None:
    DATABASE_ERRORS.note(pg.DiskFull(), reason="STORAGE_FULL")
    registry = CollectorRegistry()
    registry.register(server.metrics)
    text = generate_latest(registry).decode()

    assert 'gatekeeper_database_errors_total{sqlstate="53100"}' in text
    assert "gatekeeper_database_commits_stalled 0.0" in text
    assert "gatekeeper_database_lock_holder_seconds 0.0" in text
    assert re.search(r"gatekeeper_database_round_trip_seconds [0-9.e-]+", text)
