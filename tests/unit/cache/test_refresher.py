"""The refresher, with a source of snapshots in memory that a test can hold, break and change."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Semaphore
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.cache import refresher as refresher_module
from gatekeeper_grpc.cache.change_history import ChangeHistory
from gatekeeper_grpc.cache.refresher import FallbackSource, Refresher
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.errors import FailedPrecondition, Unavailable
from gatekeeper_grpc.domain.flag_change import FlagChanges
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH, epoch_of
from gatekeeper_grpc.domain.snapshot import Snapshot, SnapshotDelta
from tests.support.flags import flag
from tests.support.waiting import eventually

TIMEOUT_S = 60.0
NEVER_S = 3_600.0


class CallHold:
    """Holds the threads that pass, while it is shut."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        if not self._open.is_set():
            self.reached.set()
            assert self._open.wait(TIMEOUT_S)


class Source:
    """A database in memory. Only whole loads see the flag "drifted", which the change log knows nothing of."""

    def __init__(self) -> None:
        self.revision = 1
        self.is_guarded = True
        self.kept: int | None = None
        self.failures: list[Exception] = []
        self.after_load = CallHold()
        self.after_delta = CallHold()
        self.during_delta: Callable[[], object] = lambda: None
        self.after_reloaded_delta = CallHold()
        self.loads = 0
        self.paced: list[bool] = []

    def load(self, *, sharing: Snapshot | None = None) -> Snapshot:  # noqa: ARG002 - it has little to share
        self._fail_if_told()
        self.loads += 1
        snapshot = Snapshot.build(revision=self.revision, flags=[flag("drifted")] if self.revision > 1 else [])
        self.after_load.pass_through()
        return snapshot

    def head(self) -> int:
        self._fail_if_told()
        return self.revision

    def newest_of(self, epoch: int) -> int | None:
        return self.kept if epoch == 0 else None

    def load_since(self, base: Snapshot, *, paced: bool = True) -> Snapshot:
        self._fail_if_told()
        self.paced.append(paced)
        if epoch_of(base.revision) != epoch_of(self.revision):
            return self.load()
        delta = base.after(SnapshotDelta(revision=self.revision))
        self.during_delta()
        self.after_delta.pass_through()
        snapshot = replace(delta, changes=FlagChanges(since=base.revision))
        if base.flags:
            self.after_reloaded_delta.pass_through()
        return snapshot

    def report_loss(self, known_revision: int, _known_hash: bytes = b"") -> None:
        if self.is_guarded and self.revision >= known_revision:
            return
        self.kept = self.revision
        self.revision = (max(self.revision, known_revision) // REVISIONS_PER_EPOCH + 1) * REVISIONS_PER_EPOCH

    def _fail_if_told(self) -> None:
        if self.failures:
            raise self.failures.pop()


class Announcer:
    """Announces revisions to a listener; can lose its connection."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.announced: SimpleQueue[int | Exception | None] = SimpleQueue()
        self.waiting = threading.Event()

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], list[int]]]:
        yield self._wait

    def _wait(self, timeout_s: float) -> list[int]:
        self.waiting.set()
        try:
            announced = self.announced.get(timeout=timeout_s)
        except Empty:
            return []
        if isinstance(announced, Exception):
            raise announced
        return [] if announced is None else [announced]

    def wake(self) -> None:
        self.announced.put(None)


class WatchedCache(SnapshotCache):
    """Keeps the history of what it served."""

    def __init__(self) -> None:
        self.told = ChangeHistory()
        super().__init__(stale_after_s=1.0, max_waiters=1, published=self.told.extend)
        self.history: list[int] = []
        self.served: SimpleQueue[Snapshot] = SimpleQueue()

    def publish(self, snapshot: Snapshot, *, confirmed_at: float, instead_of: Snapshot | None = None) -> bool:
        published = super().publish(snapshot, confirmed_at=confirmed_at, instead_of=instead_of)
        self.history.append(self.current().revision)
        self.served.put(self.current())
        return published

    def serves(self, condition: Callable[[Snapshot], bool]) -> bool:
        """Wait, without asking for a refresh, until what is served meets a condition."""
        while not condition(self.served.get(timeout=TIMEOUT_S)):
            pass
        return True


class UnguardedCache(WatchedCache):
    """Takes whatever comes last."""

    def publish(self, snapshot: Snapshot, *, confirmed_at: float, instead_of: Snapshot | None = None) -> bool:
        self._snapshot = None
        return super().publish(snapshot, confirmed_at=confirmed_at, instead_of=instead_of)


class House:
    """A refresher with its cache, source and announcements. By default it refreshes on request only."""

    def __init__(
        self, cache: WatchedCache, *, poll_s: float, reload_s: float, fallback: FallbackSource | None = None
    ) -> None:
        self.cache = cache
        self.source = Source()
        self.announcer = Announcer()
        self.refresher = Refresher(
            cache,
            self.source,
            [self.announcer],
            report_loss=self.source.report_loss,
            fallback=fallback,
            poll_interval_s=poll_s,
            reload_interval_s=reload_s,
        )

    def settle(self) -> None:
        """Wait until the listener waits and all requested refreshes are done."""
        assert self.announcer.waiting.wait(TIMEOUT_S)
        asked_at = time.monotonic()
        assert self.cache.wait_for(lambda: self.cache._confirmed_at > asked_at, timeout_s=TIMEOUT_S)


@contextmanager
def house(*, cache: WatchedCache | None = None, poll_s: float = NEVER_S, reload_s: float = NEVER_S) -> Iterator[House]:
    house = House(cache or WatchedCache(), poll_s=poll_s, reload_s=reload_s)
    house.refresher.start()
    try:
        house.settle()
        yield house
    finally:
        house.refresher.close()


def has_drifted(snapshot: Snapshot) -> bool:
    return "drifted" in snapshot.flags


def test_the_poll_finds_what_nobody_announced() -> None:
    with house(poll_s=0.01) as running:
        running.source.revision = 2

        assert running.cache.serves(lambda snapshot: snapshot.revision == 2)


def test_an_announcement_wakes_the_refresh_long_before_the_poll() -> None:
    with house() as running:
        running.source.revision = 2
        running.announcer.announced.put(2)

        assert running.cache.serves(lambda snapshot: snapshot.revision == 2)


@pytest.mark.parametrize(
    ("serving", "announced", "asked"),
    [
        pytest.param(None, [1], True, id="nothing is served yet"),
        pytest.param(2, [3], True, id="a newer revision"),
        pytest.param(2, [2, 3, 1], True, id="a newer one among others"),
        pytest.param(2, [2], False, id="our own write, served already"),
        pytest.param(2, [1], False, id="an old one"),
        pytest.param(2, [], False, id="nothing"),
    ],
)
def test_only_announcements_of_what_is_not_served_yet_ask_for_a_refresh(
    serving: int | None, announced: list[int], asked: bool
) -> None:
    idle = House(WatchedCache(), poll_s=NEVER_S, reload_s=NEVER_S)
    if serving:
        idle.cache.publish(Snapshot.build(revision=serving), confirmed_at=0.0)

    idle.refresher._handle(announced)

    assert idle.cache.wait_for_request(0.0) is asked


def test_an_announcement_missed_while_reconnecting_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresher_module, "_RECONNECT_S", 0.01)
    with house() as running:
        running.source.revision = 2
        running.announcer.announced.put(Unavailable("the connection is lost"))

        assert running.cache.serves(lambda snapshot: snapshot.revision == 2)


def test_the_log_tells_when_a_bus_is_lost_and_when_it_is_heard_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresher_module, "_RECONNECT_S", 0.01)
    with capture_logs() as logs, house() as running:
        running.announcer.announced.put(Unavailable("lost"))
        assert eventually(lambda: [log["event"] for log in logs].count("listening") == 2)

    said = [log["event"] for log in logs if "memory" in {log.get("bus"), log.get("task", "").removeprefix("listen_")}]
    assert said[:3] == ["listening", "task_failed", "listening"]


@pytest.mark.parametrize(
    ("failure", "logged"),
    [(Unavailable("away"), [("refresh", "warning")]), (RuntimeError("bug"), [("refresh", "error")] * 3)],
    ids=["away, said once", "a bug, every time"],
)
def test_failing_loads_are_logged_and_the_next_one_succeeds(
    failure: Exception, logged: Sequence[tuple[str, str]]
) -> None:
    with capture_logs() as logs, house(poll_s=0.01) as running:
        running.source.failures = [failure] * 3
        running.source.revision = 2
        assert running.cache.serves(lambda snapshot: snapshot.revision == 2)

    failed = [(log["task"], log["log_level"]) for log in logs if log["event"] == "task_failed"]
    assert failed == logged


def reload_overtaken_twice(cache: WatchedCache) -> WatchedCache:
    """A whole load is overtaken by a write while it loads, and by another between catching up and publishing."""
    with house(cache=cache) as running:
        source = running.source
        source.revision = 2
        assert cache.wait_for_revision(2, timeout_s=TIMEOUT_S)
        source.after_load.shut()
        running.refresher._reloading.request()
        assert source.after_load.reached.wait(TIMEOUT_S)
        source.after_reloaded_delta.shut()
        source.revision = 3
        source.after_load.open()
        assert source.after_reloaded_delta.reached.wait(TIMEOUT_S)
        source.revision = 4
        cache.publish(Snapshot.build(revision=4), confirmed_at=0.0)
        source.after_reloaded_delta.open()
        running.refresher._reloading.request()
        assert cache.serves(lambda snapshot: has_drifted(snapshot) and snapshot.revision == 4)
    return cache


def test_everything_is_reloaded_when_the_interval_is_over() -> None:
    with house(poll_s=0.01, reload_s=0.01) as running:
        running.source.revision = 2

        assert running.cache.serves(has_drifted)


def test_a_slow_reload_never_takes_the_revision_back_and_is_published() -> None:
    history = reload_overtaken_twice(WatchedCache()).history

    assert history == sorted(history)


def test_twin_without_the_guard_a_slow_reload_takes_it_back() -> None:
    history = reload_overtaken_twice(UnguardedCache()).history

    assert history != sorted(history)


def test_a_reload_gives_up_when_the_database_lost_revisions() -> None:
    idle = House(WatchedCache(), poll_s=NEVER_S, reload_s=NEVER_S)
    idle.cache.publish(Snapshot.build(revision=9), confirmed_at=0.0)
    with capture_logs() as logs:
        idle.refresher._reload()

    assert idle.cache.current().revision == 9
    assert [log["event"] for log in logs] == ["reload_not_published"]


def known_after_a_reload_of_something_new(monkeypatch: pytest.MonkeyPatch, *, deltas_first: bool) -> bool:
    """Reload before any delta; return whether the change history is still complete."""
    with house() as running:
        if not deltas_first:
            monkeypatch.setattr(running.cache, "wait_for_revision", lambda *_args, **_timeout: True)
        running.source.revision = 2
        running.refresher._reload()

        assert has_drifted(running.cache.current())
        return running.cache.told.since(running.cache.told.at(1)).changes is not None


def test_a_reload_leaves_no_gap_in_what_watchers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_after_a_reload_of_something_new(monkeypatch, deltas_first=True)


def test_twin_without_waiting_for_the_deltas_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not known_after_a_reload_of_something_new(monkeypatch, deltas_first=False)


def test_a_head_older_than_the_served_revision_is_reported_as_a_loss() -> None:
    with capture_logs() as logs, house(poll_s=0.01) as running:
        running.source.revision = 7
        assert running.cache.serves(lambda snapshot: snapshot.revision == 7)
        running.source.revision = 5
        assert running.cache.serves(lambda snapshot: snapshot.revision == REVISIONS_PER_EPOCH)
        assert has_drifted(running.cache.current())

    lost = [(log["lost_from_revision"], log["lost_to_revision"]) for log in logs if log["event"] == "commits_lost"]
    assert lost == [(6, 7)]


def test_an_epoch_without_a_loss_here_is_logged_as_such() -> None:
    with capture_logs() as logs, house(poll_s=0.01) as running:
        running.source.revision = running.source.kept = 7
        assert running.cache.serves(lambda snapshot: snapshot.revision == 7)
        running.source.revision = REVISIONS_PER_EPOCH
        assert running.cache.serves(lambda snapshot: snapshot.revision == REVISIONS_PER_EPOCH)

    events = [log["event"] for log in logs]
    assert ("epoch_begun_without_loss_here" in events, "commits_lost" in events) == (True, False)


def test_a_database_of_another_installation_is_served_and_no_loss_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = House(WatchedCache(), poll_s=NEVER_S, reload_s=NEVER_S)
    idle.cache.publish(Snapshot.build(installation_id=uuid4(), revision=REVISIONS_PER_EPOCH + 7), confirmed_at=0.0)
    elsewhere = Snapshot.build(installation_id=uuid4(), revision=5)
    monkeypatch.setattr(idle.source, "load_since", lambda _: elsewhere)
    with capture_logs() as logs:
        idle.refresher._refresh()

    assert idle.cache.current() is elsewhere
    assert idle.source.revision == 1
    assert [log["event"] for log in logs] == ["installation_changed"]


class Replica:
    """Has something of its own, however old."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def load(self) -> Snapshot:
        return self._snapshot

    def load_since(self, base: Snapshot) -> Snapshot:
        return base if base.revision == self._snapshot.revision else self._snapshot


@pytest.mark.parametrize(
    ("serving", "replica", "served"),
    [
        pytest.param(None, 3, 3, id="nothing is served yet"),
        pytest.param(2, 3, 3, id="newer"),
        pytest.param(3, 2, 3, id="it lags"),
        pytest.param(2, REVISIONS_PER_EPOCH, 2, id="of another epoch"),
    ],
)
def test_during_an_outage_a_newer_replica_is_served_unconfirmed(serving: int | None, replica: int, served: int) -> None:
    idle = House(WatchedCache(), poll_s=NEVER_S, reload_s=NEVER_S, fallback=Replica(Snapshot.build(revision=replica)))
    if serving:
        idle.cache.publish(Snapshot.build(revision=serving), confirmed_at=0.0)
    unconfirmed_before = idle.cache.unconfirmed_s()
    idle.source.failures = [Unavailable("away")]
    with pytest.raises(Unavailable):
        idle.refresher._refresh()

    assert idle.cache.current().revision == served
    assert idle.cache.unconfirmed_s() >= unconfirmed_before
    assert idle.source.revision == 1  # No loss was reported.


def test_a_revision_beyond_the_head_is_refused_during_a_long_load() -> None:
    with house() as running:
        running.source.revision = 2
        assert running.cache.wait_for_revision(2, timeout_s=TIMEOUT_S)
        running.source.after_load.shut()
        running.source.revision = REVISIONS_PER_EPOCH + 1  # Which no delta leads to.
        running.cache.request_refresh()
        assert running.source.after_load.reached.wait(TIMEOUT_S)
        with pytest.raises(FailedPrecondition):
            running.cache.at_least(REVISIONS_PER_EPOCH + 2)
        running.source.after_load.open()


def expecting(revision: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Expect a revision of a database at revision 5; return the database's revision afterwards."""
    monkeypatch.setattr(refresher_module, "_FOUND_WITHIN_S", 0.3)
    with house() as running:
        running.source.revision = 5
        running.refresher.expect(revision)
        return running.source.revision


def test_an_expected_revision_that_exists_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert expecting(5, monkeypatch) == 5


def test_an_expected_revision_that_is_missing_is_reported_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expecting(6, monkeypatch) == REVISIONS_PER_EPOCH


def test_a_revision_that_exists_does_not_wait_for_a_reload() -> None:
    with house() as running:
        running.source.after_load.shut()
        running.refresher._reloading.request()
        assert running.source.after_load.reached.wait(TIMEOUT_S)
        running.source.revision = 2

        assert running.cache.at_least(2).revision == 2
        running.source.after_load.open()


def test_a_loss_that_cannot_be_reported_yet_is_reported_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with house(poll_s=0.01) as running:
        running.source.revision = 7
        assert running.cache.serves(lambda snapshot: snapshot.revision == 7)
        report_loss, failures = running.refresher._report_loss, [Unavailable("away")]

        def report_later(known_revision: int, known_hash: bytes) -> object:
            if failures:
                raise failures.pop()
            return report_loss(known_revision, known_hash)

        monkeypatch.setattr(running.refresher, "_report_loss", report_later)
        running.source.revision = 5
        assert running.cache.serves(lambda snapshot: snapshot.revision == REVISIONS_PER_EPOCH)


@pytest.mark.parametrize("is_recalled", [True, False])
def test_a_stored_snapshot_is_brought_up_without_rests_then_reloaded(*, is_recalled: bool) -> None:
    idle = House(WatchedCache(), poll_s=NEVER_S, reload_s=NEVER_S)
    kept = Snapshot.build(revision=2)
    idle.source.revision = 3
    if is_recalled:
        idle.cache.recall(kept)
    else:
        idle.cache.publish(kept, confirmed_at=0.0)
    idle.refresher._refresh()
    is_reloaded = is_recalled and eventually(lambda: has_drifted(idle.cache.current()))
    idle.refresher.close()

    assert idle.cache.current().revision == 3
    assert idle.source.paced[0] is not is_recalled
    assert (is_reloaded, idle.source.loads) == (is_recalled, int(is_recalled))


def refresh_overtaken_by_a_reload(monkeypatch: pytest.MonkeyPatch, *, guarded: bool) -> int:
    """While the refresh loads what changed, a reload publishes something newer; returns where the database ends."""
    idle = House(WatchedCache(), poll_s=NEVER_S, reload_s=NEVER_S)
    idle.cache.publish(Snapshot.build(revision=2), confirmed_at=0.0)
    idle.source.revision, idle.source.is_guarded = 3, guarded
    load_since = idle.source.load_since

    def overtaken(base: Snapshot) -> Snapshot:
        loaded = load_since(base)
        idle.source.revision = 4
        idle.cache.publish(Snapshot.build(revision=4), confirmed_at=0.0)
        return loaded

    monkeypatch.setattr(idle.source, "load_since", overtaken)
    idle.refresher._refresh()
    return idle.cache.current().revision


def refreshed_while_reloaded(monkeypatch: pytest.MonkeyPatch, *, drop: str = "") -> Snapshot:
    """A reload repairs what is served while a refresh, begun before it, finds nothing new; returns what is served."""
    idle = House(WatchedCache(), poll_s=NEVER_S, reload_s=NEVER_S)
    idle.cache.publish(Snapshot.build(revision=2), confirmed_at=0.0)
    idle.source.revision = 2

    def overtaken(base: Snapshot) -> Snapshot:
        if not has_drifted(idle.cache.current()):
            idle.cache.publish(idle.source.load(), confirmed_at=0.0)
        return base

    if drop:
        publish = idle.cache.publish
        monkeypatch.setattr(idle.cache, "publish", lambda snapshot, **rest: publish(snapshot, **(rest | {drop: None})))
    monkeypatch.setattr(idle.source, "load_since", overtaken)
    idle.refresher._refresh()
    return idle.cache.current()


def test_a_refresh_does_not_undo_a_later_reload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert has_drifted(refreshed_while_reloaded(monkeypatch))


def test_twin_without_knowing_what_it_began_with_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_drifted(refreshed_while_reloaded(monkeypatch, drop="instead_of"))


def test_a_refresh_that_a_reload_overtook_begins_no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refresh_overtaken_by_a_reload(monkeypatch, guarded=True) == 4


def test_twin_without_the_guard_it_begins_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refresh_overtaken_by_a_reload(monkeypatch, guarded=False) == REVISIONS_PER_EPOCH


def test_a_write_is_visible_when_the_wait_for_it_ends() -> None:
    with house() as running:
        running.source.revision = 2
        running.refresher.refresh_after_write(2)

        assert running.cache.current().revision == 2


@contextmanager
def slow_refresh(running: House) -> Iterator[None]:
    """Hold up the refresh for longer than refreshes may fail, as a busy machine does."""
    running.source.after_delta.shut()
    running.cache.request_refresh()
    assert running.source.after_delta.reached.wait(TIMEOUT_S)
    try:
        yield
    finally:
        running.source.after_delta.open()


def shown_when_acknowledged(monkeypatch: pytest.MonkeyPatch, acknowledge: Callable[[House], object]) -> int:
    """Commit revision 2 during a slow refresh; return the revision that is served when the write is acknowledged."""
    monkeypatch.setattr(refresher_module, "_RETRY_REFRESH_S", 0.01)
    monkeypatch.setattr(refresher_module, "_REFRESH_MAY_FAIL_S", 0.02)
    with house() as running, ThreadPoolExecutor(1) as writers:
        waits = Semaphore(0)
        wait_for_revision = running.cache.wait_for_revision

        def counted(revision: int, *, timeout_s: float) -> bool:
            waits.release()
            return wait_for_revision(revision, timeout_s=timeout_s)

        monkeypatch.setattr(running.cache, "wait_for_revision", counted)
        with slow_refresh(running):
            running.source.revision = 2
            shown = writers.submit(lambda: (acknowledge(running), running.cache.current().revision)[1])
            for _ in range(10):  # 0.1 s in all: five times as long as refreshes may fail.
                if not waits.acquire(timeout=0.5):
                    break
        return shown.result(TIMEOUT_S)


def test_a_write_is_acknowledged_when_visible_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_when_acknowledged(monkeypatch, lambda running: running.refresher.refresh_after_write(2)) == 2


def test_twin_with_a_bounded_wait_it_is_acknowledged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_when_acknowledged(monkeypatch, lambda it: it.cache.wait_for_revision(2, timeout_s=0.05)) == 1


def refused_write(monkeypatch: pytest.MonkeyPatch, revision: int, *, prepare: Callable[[House], object]) -> str:
    monkeypatch.setattr(refresher_module, "_RETRY_REFRESH_S", 0.01)
    monkeypatch.setattr(refresher_module, "_REFRESH_MAY_FAIL_S", 0.02)
    with house() as running:
        prepare(running)
        with pytest.raises(Unavailable) as refused:
            running.refresher.refresh_after_write(revision)
    assert refused.value.metadata == {"revision": str(revision)}
    return str(refused.value)


def test_a_write_is_not_acknowledged_when_every_refresh_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def go_away(running: House) -> None:
        running.source.failures = [Unavailable("away")] * 10_000

    refusal = refused_write(monkeypatch, 2, prepare=go_away)

    assert "committed at revision 2" in refusal
    assert "the database does not answer" in refusal


def test_a_write_is_acknowledged_after_refreshes_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresher_module, "_RETRY_REFRESH_S", 0.01)
    with house() as running:
        running.source.failures = [Unavailable("away")] * 3
        running.source.revision = 2
        running.refresher.refresh_after_write(2)

        assert running.cache.current().revision == 2


def test_a_write_that_the_database_has_lost_is_not_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has lost it" in refused_write(monkeypatch, 99, prepare=lambda _: None)


def test_a_write_is_not_acknowledged_by_an_instance_that_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = refused_write(monkeypatch, 99, prepare=lambda running: running.refresher.close())

    assert "shutting down" in refusal


def is_refreshed_again(cache: WatchedCache) -> bool:
    """Announce a write while the refresh for it is under way; return whether another refresh is due after it."""
    idle = House(cache, poll_s=NEVER_S, reload_s=NEVER_S)
    idle.cache.publish(Snapshot.build(revision=1), confirmed_at=0.0)
    idle.source.revision = 2
    idle.cache.request_refresh(2)  # As `refresh_after_write` does.
    assert idle.cache.wait_for_request(0.0)
    idle.source.during_delta = lambda: idle.refresher._handle([2])
    idle.refresher._refresh()
    assert idle.cache.current().revision == 2
    return idle.cache.wait_for_request(0.0)


class ForgetfulCache(WatchedCache):
    """Remembers that a refresh was requested, and not for which revision."""

    def request_refresh(self, revision: float = math.inf) -> None:  # noqa: ARG002 - it is forgotten
        super().request_refresh()


def test_an_own_write_announced_during_its_refresh_is_loaded_once() -> None:
    assert not is_refreshed_again(WatchedCache())


def test_twin_without_the_requested_revision_it_is_loaded_twice() -> None:
    assert is_refreshed_again(ForgetfulCache())


def test_a_failed_refresh_makes_listeners_check_their_connections() -> None:
    idle = House(WatchedCache(), poll_s=NEVER_S, reload_s=NEVER_S)
    idle.source.failures = [Unavailable("away")]
    with pytest.raises(Unavailable):
        idle.refresher._refresh()

    assert idle.announcer.announced.get_nowait() is None


def test_closing_ends_all_threads_however_long_the_intervals() -> None:
    with house() as running:
        names = {thread.name for thread in threading.enumerate()}
        threads = [periodic._thread for periodic in (running.refresher._refreshing, *running.refresher._listening)]

    assert {"gatekeeper-refresh", "gatekeeper-listen_memory"} <= names
    assert not names & {"gatekeeper-reload", "gatekeeper-head"}
    assert not any(thread.is_alive() for thread in threads)
