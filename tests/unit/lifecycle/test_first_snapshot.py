"""The first snapshot of a start: the database's, or the last-known-good one, and never that of an unfit database."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.errors import FailedPrecondition, GatekeeperError, Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle import first_snapshot as first_snapshot_module
from gatekeeper_grpc.lifecycle import open_database as opening_module
from gatekeeper_grpc.lifecycle.first_snapshot import FirstSnapshot, StartupTimeouts
from gatekeeper_grpc.lifecycle.open_database import DatabaseConnector
from tests.conftest import KEYS
from tests.support.snapshots import ELSEWHERE, MemoryStorage, changed, stored, whole
from tests.unit.cache.test_snapshot_cache import Clock

TIMEOUT_S = 10.0
SOON = StartupTimeouts(refused_s=0.05, silent_s=0.05, loading_s=0.05)
NEVER = StartupTimeouts(refused_s=TIMEOUT_S, silent_s=TIMEOUT_S, loading_s=TIMEOUT_S)
FROM_DATABASE = changed(whole(4), 6)


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening_module, "_RETRY_S", 0.01)
    monkeypatch.setattr(first_snapshot_module, "FOR_OTHERS", SOON)
    monkeypatch.setattr(first_snapshot_module, "_FIRST_SNAPSHOT_TIMEOUT_S", 1.0)


class House:
    """A start whose database does what a test says."""

    def __init__(self, patience: StartupTimeouts, *, is_kept: bool) -> None:
        self.cache = SnapshotCache(stale_after_s=1.0, max_waiters=1)
        self.storage = MemoryStorage(Clock(), "file")
        self.storage.content = stored(whole(5)) if is_kept else b""
        self.trouble: GatekeeperError | None = None
        self.is_silent = threading.Event()
        self.is_loaded = threading.Event()
        self.opened = 0
        self.opening = DatabaseConnector(self._prepare, self._open)
        self.first = FirstSnapshot(self.cache, self.opening, [self.storage], sealer=KEYS.data, patience=patience)

    def start(self) -> None:
        self.opening.start()
        self.first.wait()

    def _prepare(self) -> None:
        while self.is_silent.is_set():
            time.sleep(0.005)
        if self.trouble:
            raise self.trouble

    def _open(self) -> None:
        self.opened += 1
        if self.is_loaded.is_set():
            self.load()

    def load(self) -> None:
        self.cache.publish(FROM_DATABASE, confirmed_at=time.monotonic())


@contextmanager
def house(patience: StartupTimeouts = SOON, *, is_kept: bool = True) -> Iterator[House]:
    house = House(patience, is_kept=is_kept)
    try:
        yield house
    finally:
        house.is_silent.clear()
        house.opening.close()


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def test_a_database_that_is_there_is_answered_from_and_nothing_is_recalled() -> None:
    with house(NEVER) as starting:
        starting.is_loaded.set()
        starting.start()

        assert starting.cache.current() is FROM_DATABASE
        assert (starting.first.last_known_good, [*starting.first.reasons()]) == (None, [])


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        pytest.param(whole(9), [9], id="newer: the database may have lost it"),
        pytest.param(whole(6), [], id="the same"),
        pytest.param(whole(5), [], id="older"),
        pytest.param(whole(9, ELSEWHERE), [], id="of another installation"),
    ],
)
def test_what_is_kept_and_newer_than_the_database_is_looked_for_before_anything_is_served(
    there: Snapshot, expected: list[int]
) -> None:
    with house(NEVER) as starting:
        told: list[int] = []
        starting.first._expect = told.append
        starting.storage.content = stored(there)
        starting.is_loaded.set()
        starting.start()

    assert told == expected


AWAY, UNFIT = Unavailable("it is away"), FailedPrecondition("the schema is older: run `gatekeeper migrate up`")


@pytest.mark.parametrize("fault", ["refuses", "is silent", "loads for long"])
def test_while_the_database_does_not_come_the_kept_snapshot_answers_stale_and_says_so(fault: str) -> None:
    with capture_logs() as logs, house() as starting:
        starting.trouble = AWAY if fault == "refuses" else None
        if fault == "is silent":
            starting.is_silent.set()
        starting.start()
        recalled = starting.first.last_known_good

        assert recalled
        assert (recalled.storage, starting.cache.current().revision, starting.cache.is_stale()) == ("file", 5, True)
        assert next(starting.first.reasons()).startswith("answers are from the last-known-good snapshot (file)")
        starting.trouble = None
        starting.is_silent.clear()
        assert eventually(lambda: starting.opening.is_open)
        starting.load()
        assert starting.cache.current() is FROM_DATABASE
        assert (starting.first.last_known_good, [*starting.first.reasons()]) == (None, [])
    told = [log["event"] for log in logs]
    assert told[0] == "serving_last_known_good"
    assert told.count("database_opened") == (fault != "loads for long")


def test_an_unfit_database_that_is_there_is_refused_although_something_is_kept() -> None:
    with house() as starting:
        starting.trouble = UNFIT
        with pytest.raises(FailedPrecondition, match="migrate up"):
            starting.start()

        assert (starting.cache.peek(), starting.opened) == (None, 0)


def test_without_anything_kept_a_database_that_is_away_is_refused() -> None:
    with house(is_kept=False) as starting:
        starting.trouble = AWAY
        with pytest.raises(Unavailable, match="it is away"):
            starting.start()


def test_a_database_that_turns_out_to_be_unfit_is_not_opened_and_told_of_once_until_it_is_mended() -> None:
    with capture_logs() as logs, house() as starting:
        starting.trouble = AWAY
        starting.start()
        starting.trouble = UNFIT
        assert eventually(lambda: starting.opening.is_refused)
        time.sleep(0.1)
        assert (starting.opened, starting.cache.current().revision) == (0, 5)
        assert any("migrate up" in reason for reason in starting.first.reasons())
        starting.trouble = None
        assert eventually(lambda: starting.opening.is_open)

    assert [log["event"] for log in logs] == [
        "serving_last_known_good",
        "database_away",
        "database_refused",
        "database_opened",
    ]
    assert starting.opened == 1


def test_what_a_replica_brings_unconfirmed_is_not_taken_for_what_was_kept() -> None:
    with house() as starting:
        starting.trouble = AWAY
        starting.start()
        starting.cache.publish(FROM_DATABASE, confirmed_at=-math.inf)

        assert starting.first.last_known_good is None


def test_a_kept_snapshot_never_takes_the_place_of_what_the_database_brought() -> None:
    with house() as starting:
        starting.load()

        assert not starting.cache.recall(whole(9))
        assert starting.cache.current() is FROM_DATABASE


def test_after_closing_a_database_that_comes_is_not_opened_any_more() -> None:
    with house() as starting:
        starting.is_silent.set()
        starting.start()
        starting.opening.close()
        starting.is_silent.clear()
        starting.opening._attempts._thread.join(TIMEOUT_S)

        assert starting.opened == 0
