"""The snapshot cache: never older than it was, honest about its age, as fresh as a caller insists, or refused."""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.cache import snapshot_cache
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.errors import FailedPrecondition, Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot
from tests.support.clocks import Clock

pytestmark = pytest.mark.promise("A2", "A5")

TIMEOUT_S = 60.0


class CountedCache(SnapshotCache):
    """Counts the waits for the newest revision, and the requests for a refresh."""

    def __init__(self, clock: Clock, *, max_waiters: int = 4) -> None:
        super().__init__(stale_after_s=10.0, max_waiters=max_waiters, clock=clock)
        self.asked = threading.Semaphore(0)
        self.asked_for_refresh = threading.Semaphore(0)

    def _wait(self, condition: Callable[[], bool], deadline: float) -> bool:
        self.asked.release()
        return super()._wait(condition, deadline)

    def request_refresh(self, revision: float = math.inf) -> None:
        super().request_refresh(revision)
        self.asked_for_refresh.release()

    def was_asked(self) -> bool:
        """Wait until a call waits for the newest revision; each wait counts once."""
        return self.asked.acquire(timeout=TIMEOUT_S)

    def was_asked_for_refresh(self) -> bool:
        """Wait until a refresh is requested; each request counts once."""
        return self.asked_for_refresh.acquire(timeout=TIMEOUT_S)


class UnguardedCache(SnapshotCache):
    """A cache that serves the last published snapshot, even an older one."""

    def publish(self, snapshot: Snapshot, *, confirmed_at: float, instead_of: Snapshot | None = None) -> bool:
        self._snapshot = None
        return super().publish(snapshot, confirmed_at=confirmed_at, instead_of=instead_of)


def at(revision: int) -> Snapshot:
    return Snapshot.build(revision=revision)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> CountedCache:
    """A cache at revision 5, confirmed a second ago: calls for a later one wait."""
    cache = CountedCache(clock)
    cache.publish(at(5), confirmed_at=clock())
    clock.advance(1.0)
    return cache


HERE, ELSEWHERE = UUID(int=1), UUID(int=2)


def test_a_snapshot_of_another_installation_replaces_a_newer_one(clock: Clock) -> None:
    cache = CountedCache(clock)
    cache.publish(Snapshot.build(installation_id=ELSEWHERE, revision=9), confirmed_at=clock())
    clock.advance(60.0)
    with capture_logs() as logs:
        taken = [
            cache.publish(Snapshot.build(installation_id=HERE, revision=revision), confirmed_at=clock() - 30.0)
            for revision in (5, 6, 4)
        ]

    assert taken == [True, True, False]
    assert (cache.current().installation_id, cache.current().revision) == (HERE, 6)
    assert cache.unconfirmed_s() == 30.0
    assert [(log["event"], log["installation_id_before"], log["revision_before"]) for log in logs] == [
        ("installation_changed", str(ELSEWHERE), 9)
    ]


def test_twin_of_the_same_installation_an_older_snapshot_is_not_taken(clock: Clock) -> None:
    cache = CountedCache(clock)
    cache.publish(Snapshot.build(installation_id=HERE, revision=9), confirmed_at=clock())

    assert not cache.publish(Snapshot.build(installation_id=HERE, revision=5), confirmed_at=clock())


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    """Threads to wait in."""
    with ThreadPoolExecutor(8) as callers:
        yield callers


def test_without_a_snapshot_calls_are_refused_and_stale(clock: Clock) -> None:
    cache = CountedCache(clock)

    with pytest.raises(Unavailable, match="no snapshot of the flags is loaded yet"):
        cache.current()
    with pytest.raises(Unavailable):
        cache.at_least(0)
    assert (cache.peek(), cache.is_stale(), cache.unconfirmed_s()) == (None, True, float("inf"))


@pytest.mark.parametrize(
    ("published", "accepted", "current"),
    [(6, True, 6), (5, True, 5), (4, False, 5), (2_000_000_000, True, 2_000_000_000)],
    ids=["newer", "the same", "older", "of a later epoch"],
)
def test_a_snapshot_is_published_unless_a_newer_one_is_current(
    published: int, accepted: bool, current: int, cache: CountedCache, clock: Clock
) -> None:
    assert cache.publish(at(published), confirmed_at=clock()) is accepted
    assert cache.current().revision == current


def revisions_seen(cache: SnapshotCache) -> list[int]:
    """What a reader sees while a slow load, begun at revision 1, is published after revision 2."""
    seen = []
    for revision in (1, 2, 1):
        cache.publish(at(revision), confirmed_at=0.0)
        seen.append(cache.current().revision)
    return seen


def test_a_late_publication_never_takes_the_revision_back() -> None:
    assert revisions_seen(SnapshotCache(stale_after_s=1.0, max_waiters=1)) == [1, 2, 2]


def test_twin_without_the_guard_it_goes_backwards() -> None:
    assert revisions_seen(UnguardedCache(stale_after_s=1.0, max_waiters=1)) == [1, 2, 1]


def test_racing_publishers_leave_the_newest_and_no_reader_sees_a_step_back(callers: ThreadPoolExecutor) -> None:
    cache = SnapshotCache(stale_after_s=1.0, max_waiters=1)
    start, seen = threading.Barrier(6), []

    def publish(revisions: range) -> None:
        start.wait(TIMEOUT_S)
        for revision in revisions:
            cache.publish(at(revision), confirmed_at=0.0)
            seen.append(cache.current().revision >= revision)

    for first in range(6):
        callers.submit(publish, range(first, 300, 6))
    callers.shutdown()

    assert (cache.current().revision, len(seen), all(seen)) == (299, 300, True)


@pytest.mark.parametrize(
    ("age_s", "stale"), [(0.0, False), (10.0, False), (10.001, True)], ids=["new", "on the line", "past it"]
)
def test_answers_unconfirmed_for_longer_than_the_bound_are_stale(age_s: float, stale: bool, clock: Clock) -> None:
    cache = CountedCache(clock)
    cache.publish(at(1), confirmed_at=clock())
    clock.advance(age_s)

    assert cache.is_stale() is stale


def test_a_confirmation_of_the_same_revision_ends_staleness(clock: Clock) -> None:
    cache = CountedCache(clock)
    cache.publish(at(1), confirmed_at=clock())
    clock.advance(60.0)
    cache.publish(at(1), confirmed_at=clock())

    assert not cache.is_stale()


@pytest.mark.parametrize("revision", [5, 4], ids=["the same, asked for earlier", "an older one, refused"])
def test_an_earlier_load_never_makes_the_snapshot_less_confirmed(
    revision: int, cache: CountedCache, clock: Clock
) -> None:
    before = cache.unconfirmed_s()

    cache.publish(at(revision), confirmed_at=clock() - 100.0)

    assert cache.unconfirmed_s() == before


@pytest.mark.parametrize("revision", [0, 1, 5])
def test_a_served_revision_needs_no_database(revision: int, cache: CountedCache) -> None:
    assert cache.at_least(revision) is cache.current()
    assert not cache.asked.acquire(blocking=False)


def waiting(callers: ThreadPoolExecutor, cache: CountedCache, revision: int) -> Future[Snapshot]:
    """A call that waits for a revision."""
    call = callers.submit(cache.at_least, revision)
    assert cache.was_asked()
    return call


def test_a_caller_waits_for_the_revision_and_gets_it(
    cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    call = waiting(callers, cache, 6)
    cache.publish(at(7), confirmed_at=clock())

    assert call.result(TIMEOUT_S).revision == 7


def test_a_load_begun_before_the_call_may_bring_the_revision(
    cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    call = waiting(callers, cache, 6)
    cache.publish(at(6), confirmed_at=clock() - 0.5)

    assert call.result(TIMEOUT_S).revision == 6


def test_a_revision_made_right_after_a_head_read_is_found(
    cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    cache.publish(at(5), confirmed_at=clock())
    clock.advance(0.001)
    call = waiting(callers, cache, 6)
    cache.publish(at(6), confirmed_at=clock())

    assert call.result(TIMEOUT_S).revision == 6


def refused(callers: ThreadPoolExecutor, cache: CountedCache, clock: Clock, revision: int) -> FailedPrecondition:
    """Ask for a revision while the head is at 5, and return why there is none."""
    call = waiting(callers, cache, revision)
    cache.publish(at(5), confirmed_at=clock())
    error = call.exception(TIMEOUT_S)
    assert isinstance(error, FailedPrecondition)
    return error


def test_a_revision_above_the_fresh_head_does_not_exist(
    cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    error = refused(callers, cache, clock, 7)

    assert str(error) == "min_revision 7 does not exist yet; the newest revision is 5"
    assert (error.reason, error.metadata) == ("REVISION_NOT_REACHED", {"min_revision": "7", "revision": "5"})


@pytest.mark.parametrize("revision", [7, 8], ids=["the same", "a later one"])
def test_a_missing_revision_is_refused_for_100_ms_without_a_read(
    revision: int, cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    refused(callers, cache, clock, 7)
    clock.advance(0.099)

    with pytest.raises(FailedPrecondition, match=f"min_revision {revision} does not exist yet"):
        cache.at_least(revision)

    assert not cache.asked.acquire(blocking=False)


@pytest.mark.parametrize(
    ("revision", "later_s"), [(6, 0.001), (7, 0.1)], ids=["an earlier revision", "the same after 100 ms"]
)
def test_a_refusal_keeps_nobody_else_from_what_may_exist_by_now(
    revision: int, later_s: float, cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    refused(callers, cache, clock, 7)
    clock.advance(later_s)
    call = waiting(callers, cache, revision)
    cache.publish(at(revision), confirmed_at=clock())

    assert call.result(TIMEOUT_S).revision == revision


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_cache, "_CATCH_UP_TIMEOUT_S", 0.05)


def test_without_a_confirmation_in_time_the_call_is_refused(impatient: None, cache: CountedCache) -> None:
    with pytest.raises(Unavailable, match="cannot catch up with the newest revision"):
        cache.at_least(6)


def test_a_head_read_before_the_call_refuses_nothing(
    impatient: None, cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    call = waiting(callers, cache, 6)
    cache.publish(at(5), confirmed_at=clock() - 0.5)

    with pytest.raises(Unavailable, match="cannot catch up with the newest revision"):
        call.result(TIMEOUT_S)


def test_callers_who_wait_share_one_read_of_the_head(
    cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    calls = [waiting(callers, cache, 6) for _ in range(4)]
    cache.publish(at(6), confirmed_at=clock())

    assert [call.result(TIMEOUT_S).revision for call in calls] == [6] * 4


@pytest.fixture
def crowded(clock: Clock, callers: ThreadPoolExecutor) -> Iterator[CountedCache]:
    """A cache at revision 5 where the one caller who may wait for another revision does."""
    cache = CountedCache(clock, max_waiters=1)
    cache.publish(at(5), confirmed_at=clock())
    clock.advance(1.0)
    call = waiting(callers, cache, 6)
    yield cache
    cache.publish(at(6), confirmed_at=clock())
    assert call.result(TIMEOUT_S).revision == 6


def test_further_callers_are_refused_at_once_while_too_many_wait(crowded: CountedCache) -> None:
    with pytest.raises(Unavailable, match="too many calls wait for a revision already"):
        crowded.at_least(6)


def test_evaluation_goes_on_while_callers_wait(crowded: CountedCache) -> None:
    assert [crowded.at_least(revision).revision for revision in (0, 5)] == [5, 5]


def test_a_refused_caller_gives_its_waiting_slot_back(impatient: None, clock: Clock) -> None:
    cache = CountedCache(clock, max_waiters=1)
    cache.publish(at(5), confirmed_at=clock() - 1.0)

    for _ in range(3):
        with pytest.raises(Unavailable, match="cannot catch up"):
            cache.at_least(6)


def test_what_the_head_does_not_have_is_refused_without_a_refresh(
    cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    call = waiting(callers, cache, 8)
    cache.note_head(7, read_at=clock())

    with pytest.raises(FailedPrecondition, match="the newest revision is 7"):
        call.result(TIMEOUT_S)
    assert not cache.asked_for_refresh.acquire(blocking=False)


def test_what_the_head_has_is_waited_for(cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor) -> None:
    call = waiting(callers, cache, 7)
    cache.note_head(7, read_at=clock())
    assert cache.was_asked_for_refresh()
    cache.publish(at(7), confirmed_at=clock())

    assert call.result(TIMEOUT_S).revision == 7


def test_a_revision_that_arrives_too_late_is_not_answered_by_an_older(
    impatient: None, cache: CountedCache, clock: Clock, callers: ThreadPoolExecutor
) -> None:
    call = waiting(callers, cache, 7)
    cache.note_head(7, read_at=clock())

    with pytest.raises(Unavailable, match="cannot catch up"):
        call.result(TIMEOUT_S)


def test_what_a_replica_had_confirms_nothing(cache: CountedCache) -> None:
    before = cache.unconfirmed_s()
    cache.publish(at(6), confirmed_at=-math.inf)

    assert (cache.current().revision, cache.unconfirmed_s()) == (6, before)


@pytest.mark.parametrize(("revision", "there"), [(5, True), (6, False)])
def test_waiting_for_a_revision_tells_whether_it_came(revision: int, there: bool, cache: CountedCache) -> None:
    assert cache.wait_for_revision(revision, timeout_s=0.01) is there


def test_requests_made_before_the_wait_is_over_are_served_by_one_refresh(cache: CountedCache) -> None:
    cache.request_refresh()
    cache.request_refresh()

    assert cache.wait_for_request(TIMEOUT_S)
    assert not cache.wait_for_request(0.0)


def test_a_requested_revision_that_is_served_by_then_needs_no_refresh(cache: CountedCache) -> None:
    cache.request_refresh(6)
    cache.publish(at(6), confirmed_at=0.0)

    assert not cache.wait_for_request(0.0)


def test_a_request_for_a_newer_revision_outlives_one_for_an_older(cache: CountedCache) -> None:
    cache.request_refresh(7)
    cache.request_refresh(6)
    cache.publish(at(6), confirmed_at=0.0)

    assert cache.wait_for_request(0.0)
