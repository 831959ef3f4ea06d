"""Announcements: each commit says its revision to whoever listens, and a listener notices that it has gone deaf."""

from collections.abc import Callable, Iterator

import psycopg
import pytest

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.store.database import Database
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.ledger import Ledger
from gatekeeper_grpc.store.notifications import RevisionListener
from tests.conftest import KEYS, database_dsn

TIMEOUT_S = 10.0


@pytest.fixture
def flags(database: Database) -> FlagStore:
    return FlagStore(database, Ledger(database, KEYS.data))


@pytest.fixture
def wait(dsn: str) -> Iterator[Callable[[float], list[int]]]:
    """Waits for announced revisions."""
    with RevisionListener(dsn).listening() as wait:
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


def test_every_listener_hears_it(dsn: str, flags: FlagStore, wait: Callable[[float], list[int]]) -> None:
    with RevisionListener(dsn).listening() as wait_too:
        revision = create(flags, "flag")

        assert [heard(listener, until=revision) for listener in (wait, wait_too)] == [[revision], [revision]]


_LAST_WORD = "SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def test_each_wait_talks_to_the_server_lest_a_dead_connection_look_like_a_quiet_one(
    dsn: str, wait: Callable[[float], list[int]]
) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        before = conn.execute(_LAST_WORD).fetchall()
        wait(0.01)

        assert conn.execute(_LAST_WORD).fetchall() > before


def test_a_lost_connection_is_noticed_by_the_next_wait(dsn: str, wait: Callable[[float], list[int]]) -> None:
    others = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert conn.execute(others).fetchall() == [(True,)]

    with pytest.raises(Unavailable, match="the database is not reachable"):
        wait(TIMEOUT_S)


def test_a_database_that_is_away_is_unavailable(postgres: str) -> None:
    with pytest.raises(Unavailable), RevisionListener(database_dsn(postgres, "nowhere")).listening():
        pytest.fail("nobody can listen there")
