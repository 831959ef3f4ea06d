"""Start-up: serves the database's snapshot, or the last-known-good one; never starts with an unfit database."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.errors import FailedPrecondition, GatekeeperError, Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle import startup as startup_module
from gatekeeper_grpc.lifecycle.startup import Startup, StartupTimeouts, State
from tests.support.clocks import Clock
from tests.support.servers import KEYS
from tests.support.snapshots import ELSEWHERE, MemoryStorage, changed, stored, whole
from tests.support.waiting import eventually

TIMEOUT_S = 60.0
SOON = StartupTimeouts(unreachable_s=0.05, silent_s=0.05, loading_s=0.05)
NEVER = StartupTimeouts(unreachable_s=TIMEOUT_S, silent_s=TIMEOUT_S, loading_s=TIMEOUT_S)
FROM_DATABASE = changed(whole(4), 6)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_module, "_RETRY_S", 0.01)
    monkeypatch.setattr(startup_module, "_FIRST_SNAPSHOT_TIMEOUT_S", 1.0)


class Instance:
    """A start-up whose database does what a test says."""

    def __init__(self, timeouts: StartupTimeouts, *, is_stored: bool) -> None:
        self.cache = SnapshotCache(stale_after_s=1.0, max_waiters=1)
        self.storage = MemoryStorage(Clock(), "file")
        self.storage.content = stored(whole(5)) if is_stored else b""
        self.trouble: GatekeeperError | None = None
        self.is_silent = threading.Event()
        self.is_loaded = threading.Event()
        self.opened = 0
        self.opened_on: Snapshot | None = None
        self.startup = Startup(
            self.cache,
            [self.storage],
            sealer=KEYS.data,
            prepare=self._prepare,
            open_database=self._open,
            timeouts=timeouts,
        )

    def start(self) -> None:
        self.startup.start()
        self.startup.wait()

    def _prepare(self) -> None:
        while self.is_silent.is_set():
            time.sleep(0.005)
        if self.trouble:
            raise self.trouble

    def _open(self) -> None:
        self.opened += 1
        self.opened_on = self.cache.peek()
        if self.is_loaded.is_set():
            self.load()

    def load(self) -> None:
        self.cache.publish(FROM_DATABASE, confirmed_at=time.monotonic())


@contextmanager
def instance(timeouts: StartupTimeouts = SOON, *, is_stored: bool = True) -> Iterator[Instance]:
    instance = Instance(timeouts, is_stored=is_stored)
    try:
        yield instance
    finally:
        instance.is_silent.clear()
        instance.startup.close()


def test_a_database_that_answers_is_served_from() -> None:
    with instance(NEVER) as starting:
        starting.is_loaded.set()
        starting.start()

        assert starting.cache.current() is FROM_DATABASE
        assert (starting.startup.last_known_good, [*starting.startup.reasons()]) == (None, [])


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        pytest.param(whole(9), [9], id="newer: the database may have lost it"),
        pytest.param(whole(6), [], id="the same"),
        pytest.param(whole(5), [], id="older"),
        pytest.param(whole(9, ELSEWHERE), [], id="of another installation"),
    ],
)
def test_a_stored_revision_newer_than_the_database_is_checked_first(there: Snapshot, expected: list[int]) -> None:
    with instance(NEVER) as starting:
        expected_revisions: list[int] = []
        starting.startup._expect = expected_revisions.append
        starting.storage.content = stored(there)
        starting.is_loaded.set()
        starting.start()

    assert expected_revisions == expected


UNREACHABLE, UNFIT = (
    Unavailable("does not answer"),
    FailedPrecondition("the schema is older: run `gatekeeper migrate up`"),
)


@pytest.mark.parametrize("fault", ["refuses", "is silent", "loads for long"])
def test_without_the_database_the_stored_snapshot_is_served_as_stale(fault: str) -> None:
    with capture_logs() as logs, instance() as starting:
        starting.trouble = UNREACHABLE if fault == "refuses" else None
        if fault == "is silent":
            starting.is_silent.set()
        starting.start()
        recalled = starting.startup.last_known_good

        assert recalled
        assert (recalled.storage, starting.cache.current().revision, starting.cache.is_stale()) == ("file", 5, True)
        assert next(starting.startup.reasons()).startswith("serving the last-known-good snapshot (file)")
        starting.trouble = None
        starting.is_silent.clear()
        assert eventually(lambda: starting.startup.state is State.OPEN)
        starting.load()
        assert starting.cache.current() is FROM_DATABASE
        assert (starting.startup.last_known_good, [*starting.startup.reasons()]) == (None, [])
    events = [log["event"] for log in logs]
    assert events[0] == "serving_last_known_good"
    assert events.count("database_opened") == (fault != "loads for long")


@pytest.mark.parametrize("is_large", [True, False])
def test_only_a_large_stored_snapshot_is_what_the_first_load_starts_from(
    *, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup_module, "_LARGE", -1 if is_large else 0)
    with capture_logs() as logs, instance(NEVER) as starting:
        starting.is_loaded.set()
        starting.start()
        opened_on = starting.opened_on

    assert (opened_on and opened_on.revision) == (5 if is_large else None)
    assert starting.cache.current() is FROM_DATABASE
    assert logs == []


def test_a_large_stored_snapshot_that_the_database_confirms_is_not_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_module, "_LARGE", -1)
    with instance(NEVER) as starting:

        def confirm() -> None:
            starting.cache.publish(starting.cache.current(), confirmed_at=time.monotonic())

        starting.startup._open_database = confirm
        starting.start()

        assert (starting.cache.current().revision, starting.cache.is_stale()) == (5, False)
        assert starting.startup.last_known_good is None


@pytest.mark.parametrize("fault", ["is silent", "loads for long"])
def test_a_large_stored_snapshot_is_served_soon(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other timeouts would let this test wait for a minute."""
    monkeypatch.setattr(startup_module, "_LARGE", -1)
    with instance(NEVER) as starting:
        if fault == "is silent":
            starting.is_silent.set()
        starting.start()

        assert starting.startup.last_known_good
        assert (starting.cache.current().revision, starting.cache.is_stale()) == (5, True)


def test_an_unfit_database_is_refused_although_the_stored_one_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_module, "_LARGE", -1)
    with instance(NEVER) as starting:
        starting.trouble = UNFIT
        with pytest.raises(FailedPrecondition, match="migrate up"):
            starting.start()

        assert (starting.cache.peek(), starting.opened) == (None, 0)


def test_an_unfit_database_is_refused_although_a_snapshot_is_stored() -> None:
    with instance() as starting:
        starting.trouble = UNFIT
        with pytest.raises(FailedPrecondition, match="migrate up"):
            starting.start()

        assert (starting.cache.peek(), starting.opened) == (None, 0)


def test_without_a_stored_snapshot_an_unreachable_database_ends_the_start() -> None:
    with instance(is_stored=False) as starting:
        starting.trouble = UNREACHABLE
        with pytest.raises(Unavailable, match="does not answer"):
            starting.start()


def test_an_unfit_database_is_logged_once_and_opened_once_it_is_fit() -> None:
    with capture_logs() as logs, instance() as starting:
        starting.trouble = UNREACHABLE
        starting.start()
        starting.trouble = UNFIT
        assert eventually(lambda: starting.startup.state is State.REFUSED)
        time.sleep(0.1)
        assert (starting.opened, starting.cache.current().revision) == (0, 5)
        assert any("migrate up" in reason for reason in starting.startup.reasons())
        starting.trouble = None
        assert eventually(lambda: starting.startup.state is State.OPEN)

    assert [log["event"] for log in logs] == [
        "serving_last_known_good",
        "database_unreachable",
        "database_refused",
        "database_opened",
    ]
    assert starting.opened == 1


def test_an_unconfirmed_snapshot_of_a_replica_is_not_last_known_good() -> None:
    with instance() as starting:
        starting.trouble = UNREACHABLE
        starting.start()
        starting.cache.publish(FROM_DATABASE, confirmed_at=-math.inf)

        assert starting.startup.last_known_good is None


def test_a_stored_snapshot_never_replaces_one_from_the_database() -> None:
    with instance() as starting:
        starting.load()

        assert not starting.cache.recall(whole(9))
        assert starting.cache.current() is FROM_DATABASE


def test_after_closing_no_database_is_opened() -> None:
    with instance() as starting:
        starting.is_silent.set()
        starting.start()
        starting.startup.close()
        starting.is_silent.clear()
        starting.startup._connecting.join(TIMEOUT_S)

        assert starting.opened == 0


def test_every_state_is_passed_in_order() -> None:
    with instance() as starting:
        states = [starting.startup.state]
        starting.trouble = UNREACHABLE
        starting.start()
        states.append(starting.startup.state)
        starting.trouble = UNFIT
        assert eventually(lambda: starting.startup.state is not State.UNREACHABLE)
        states.append(starting.startup.state)
        starting.trouble = None
        assert eventually(lambda: starting.startup.state is not State.REFUSED)
        states.append(starting.startup.state)
        starting.startup.close()
        states.append(starting.startup.state)

    assert states == [State.CONNECTING, State.UNREACHABLE, State.REFUSED, State.OPEN, State.CLOSED]


def test_a_failure_to_open_is_reported_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with instance() as starting:
        failures = iter([UNREACHABLE])
        opened = starting.startup._open_database

        def open_database() -> None:
            for failure in failures:
                raise failure
            opened()

        monkeypatch.setattr(starting.startup, "_open_database", open_database)
        starting.start()
        assert eventually(lambda: starting.startup.state is State.OPEN)

    assert starting.opened == 1


@contextmanager
def once_it_waits(starting: Instance, act: Callable[[], object]) -> Iterator[None]:
    """Act in another thread as soon as the start waits."""

    def run() -> None:
        assert eventually(lambda: starting.cache._changed._waiters)  # type: ignore[attr-defined] # Of the standard library.
        act()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(TIMEOUT_S)


def test_the_wait_ends_as_soon_as_the_state_changes_without_polling() -> None:
    """A failure wakes the wait: with steps of an hour, nothing but the notification can."""
    with instance(NEVER, is_stored=False) as starting, pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup_module, "_SIGNAL_CHECK_S", 3_600.0)
        starting.is_silent.set()
        starting.trouble = UNREACHABLE
        with once_it_waits(starting, starting.is_silent.clear), pytest.raises(Unavailable):
            starting.start()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handles SIGINT as Python does: a shell lets what it runs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_another_thread_receives_interrupts_the_wait(interruptible: None) -> None:
    with instance(NEVER, is_stored=False) as starting:
        starting.is_silent.set()
        interrupt = partial(signal.raise_signal, signal.SIGINT)
        with once_it_waits(starting, interrupt), pytest.raises(KeyboardInterrupt):
            starting.start()
