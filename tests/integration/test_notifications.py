"""Announcements: each commit sends its revision to all listeners; a listener notices when none is delivered."""

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import psycopg
import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import CHANNEL, MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots import notifications
from gatekeeper_grpc.store.snapshots.notifications import RevisionListener
from tests.support.databases import database_dsn
from tests.support.servers import KEYS

TIMEOUT_S = 60.0
NEVER_S = 3_600.0


@pytest.fixture
def flags(database: Database) -> FlagStore:
    return FlagStore(database, MutationRunner(database, KEYS.data))


@pytest.fixture
def wait(database: Database) -> Iterator[Callable[[float], list[int]]]:
    """Waits for announced revisions."""
    with RevisionListener(database).listening() as wait:
        yield wait


def create(flags: FlagStore, key: str, *, validate_only: bool = False) -> int:
    intent = Intent(caller=None, action="CreateFlag", validate_only=validate_only)
    return flags.create(FlagConfig(key=key), intent).revision


def heard(wait: Callable[[float], list[int]], *, until: int) -> list[int]:
    """What is announced, up to a revision."""
    announced: list[int] = []
    while until not in announced:
        more = wait(TIMEOUT_S)
        assert more, f"nothing but {announced} was announced"
        announced += more
    return announced


def test_every_commit_announces_its_revision_in_order(flags: FlagStore, wait: Callable[[float], list[int]]) -> None:
    revisions = [create(flags, f"flag-{number}") for number in range(5)]

    assert heard(wait, until=revisions[-1]) == revisions


def test_what_is_announced_between_two_waits_is_not_lost(flags: FlagStore, wait: Callable[[float], list[int]]) -> None:
    heard_one_by_one = []
    for number in range(5):
        revision = create(flags, f"flag-{number}")
        heard_one_by_one += wait(TIMEOUT_S)
        assert heard_one_by_one[-1] == revision

    assert heard_one_by_one == [1, 2, 3, 4, 5]


def test_what_is_not_committed_is_not_announced(flags: FlagStore, wait: Callable[[float], list[int]]) -> None:
    create(flags, "tried", validate_only=True)
    committed = create(flags, "committed")

    assert heard(wait, until=committed) == [committed]


def test_a_wait_in_which_nothing_is_announced_ends_in_time(wait: Callable[[float], list[int]]) -> None:
    assert wait(0.01) == []


MALFORMED = ["abc", "", "-1", "10000000000000000000000", "9223372036854775808", "1" * 5_000, " 1", "1.0", "\u0661"]


def send(dsn: str, *payloads: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for payload in payloads:
            conn.execute("SELECT pg_notify(%s, %s)", [CHANNEL, payload])


@pytest.mark.parametrize("payload", MALFORMED, ids=repr)
def test_a_malformed_announcement_is_ignored(
    payload: str, dsn: str, flags: FlagStore, wait: Callable[[float], list[int]]
) -> None:
    send(dsn, payload)
    committed = create(flags, "committed")

    assert heard(wait, until=committed) == [committed]


def test_malformed_announcements_are_one_line_in_the_log(
    dsn: str, flags: FlagStore, wait: Callable[[float], list[int]]
) -> None:
    send(dsn, *MALFORMED, *MALFORMED)
    with capture_logs() as logs:
        heard(wait, until=create(flags, "committed"))

    (ignored,) = (log for log in logs if log["event"] != "audit_entry")
    assert ignored["event"] == "announcements_ignored"
    assert ignored["last_sender_pid"] > 0
    assert "abc" not in str(logs)


def test_every_listener_hears_it(database: Database, flags: FlagStore, wait: Callable[[float], list[int]]) -> None:
    with RevisionListener(database).listening() as wait_too:
        revision = create(flags, "flag")

        assert [heard(listener, until=revision) for listener in (wait, wait_too)] == [[revision], [revision]]


_LAST_WORD = """
    SELECT max(query_start) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def test_each_wait_begins_with_a_statement(dsn: str, wait: Callable[[float], list[int]]) -> None:
    wait(0.01)
    with psycopg.connect(dsn, autocommit=True) as conn:
        before = conn.execute(_LAST_WORD).fetchall()
        wait(0.01)

        assert conn.execute(_LAST_WORD).fetchall() > before


def test_a_wait_ends_when_it_is_woken(database: Database) -> None:
    listener = RevisionListener(database)
    with listener.listening() as wait, ThreadPoolExecutor(1) as waiting:
        woken = waiting.submit(wait, NEVER_S)
        listener.wake()

        assert woken.result(TIMEOUT_S) == []


def test_waking_a_listener_that_does_not_wait_ends_its_next_wait(database: Database) -> None:
    listener = RevisionListener(database)
    listener.wake()
    with listener.listening() as wait, ThreadPoolExecutor(1) as waiting:
        assert waiting.submit(wait, NEVER_S).result(TIMEOUT_S) == []


def test_an_idle_wait_does_not_wake(wait: Callable[[float], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    wait(0.01)  # The heartbeat that every listener begins with.
    monkeypatch.setattr(notifications, "_HEARTBEAT_EVERY_S", NEVER_S)
    wait(0.01)
    before = switches()
    wait(1.0)

    assert switches() - before < 5  # psycopg's own wait: 10 and more.


def switches() -> int:
    """How often this thread has waited."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def test_a_lost_connection_is_noticed_by_the_next_wait(dsn: str, wait: Callable[[float], list[int]]) -> None:
    others = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert conn.execute(others).fetchall() == [(True,)]

    with pytest.raises(Unavailable, match="the database ended the connection"):
        wait(TIMEOUT_S)


def test_a_database_that_is_away_is_unavailable(postgres: str) -> None:
    with (
        closing(Database(database_dsn(postgres, "nowhere"))) as nowhere,
        pytest.raises(Unavailable),
        RevisionListener(nowhere).listening(),
    ):
        pytest.fail("nobody can listen there")


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "_HEARTBEAT_EVERY_S", 0.2)
    monkeypatch.setattr(notifications, "_HEARTBEAT_WITHIN_S", 0.5)


def pretend_pooler(wait: Callable[[float], list[int]]) -> None:
    """Do to the connection what a pooler in transaction mode does: LISTEN is forgotten, all else works."""
    subscription = getattr(wait, "__self__")  # noqa: B009 - the listener does not show it
    subscription._conn.execute("UNLISTEN *")


def gives_up(wait: Callable[[float], list[int]], *, within_s: float = TIMEOUT_S) -> bool:
    deadline = time.monotonic() + within_s
    try:
        while time.monotonic() < deadline:
            wait(0.05)
    except Unavailable:
        return True
    return False


@pytest.mark.usefixtures("quick_beats")
def test_a_connection_that_has_gone_deaf_is_given_up(wait: Callable[[float], list[int]]) -> None:
    wait(0.05)
    pretend_pooler(wait)

    assert gives_up(wait)


def test_twin_without_a_heartbeat_the_connection_seems_quiet(
    wait: Callable[[float], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications._PostgresSubscription, "_send_heartbeat", lambda _subscription: None)
    pretend_pooler(wait)

    assert not gives_up(wait, within_s=2.0)


@pytest.mark.usefixtures("quick_beats")
def test_a_connection_that_hears_is_kept(wait: Callable[[float], list[int]]) -> None:
    assert not gives_up(wait, within_s=2.0)


@pytest.mark.usefixtures("quick_beats")
def test_a_pooler_that_drops_notifications_is_reported_with_the_remedy(database: Database) -> None:
    listener = RevisionListener(database)
    with capture_logs() as logs:
        for _ in range(3):
            with suppress(Unavailable), listener.listening() as wait:
                pretend_pooler(wait)
                while True:
                    wait(0.05)

    assert [(log["event"], "session mode" in log["remedy"]) for log in logs] == [("announcements_not_delivered", True)]


def test_who_listens_moves_when_the_database_is_another_server(
    database: Database, wait: Callable[[float], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait(0.01)
    monkeypatch.setattr(database, "is_current", lambda _conn: False)

    with pytest.raises(Unavailable, match="another server"):
        wait(0.01)
