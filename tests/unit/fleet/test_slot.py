"""One worker of a number: started again when it dies, killed when it hangs, replaced without a gap."""

from collections.abc import Iterator
from typing import cast

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.fleet import slot as slot_module
from gatekeeper_grpc.fleet.report import Report
from gatekeeper_grpc.fleet.slot import DIED, HUNG, Slot, restart_delay_s
from gatekeeper_grpc.fleet.worker import Worker
from tests.support.clocks import Clock
from tests.support.workers import FakeProbe, FakeWorker

LEAVE_WITHIN_S = 5.0


class SnapshotStorage:
    """A slot, its clock, and the workers that were started for it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.workers: list[FakeWorker] = []
        self.slot = Slot(1, self._start, leave_within_s=LEAVE_WITHIN_S)

    def _start(self, _number: int) -> Worker:
        self.workers.append(FakeWorker(len(self.workers) + 1, self.clock))
        return cast("Worker", self.workers[-1])

    def tick(self, *, after_s: float = 0.0) -> None:
        self.clock.now_s += after_s
        self.slot.tick()

    def serving(self) -> FakeWorker:
        """Let the newest worker serve."""
        worker = self.workers[-1]
        worker.probe = FakeProbe()
        self.tick()
        return worker

    def dies(self, worker: FakeWorker, *, after_s: float = 0.0) -> None:
        worker.code = -9
        self.tick(after_s=after_s)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[SnapshotStorage]:
    place = SnapshotStorage()
    monkeypatch.setattr(slot_module, "time", place.clock)
    with capture_logs():
        place.tick()
        yield place


def test_a_worker_is_started_at_once(place: SnapshotStorage) -> None:
    assert (len(place.workers), place.slot.serves) == (1, False)


def test_a_worker_that_lived_long_is_started_again_at_once(place: SnapshotStorage) -> None:
    place.dies(place.serving(), after_s=60.0)
    place.tick()

    assert len(place.workers) == 2
    assert place.slot.restarts == {DIED: 1, HUNG: 0}


def test_a_worker_that_keeps_dying_young_is_started_ever_more_patiently(place: SnapshotStorage) -> None:
    waits = []
    for deaths in range(1, 5):
        place.dies(place.workers[-1], after_s=1.0)
        died_at = place.clock.now_s
        while len(place.workers) == deaths:
            place.tick(after_s=0.25)
        waits.append(place.clock.now_s - died_at)

    assert waits == [0.25, 0.5, 1.0, 2.0]


@pytest.mark.parametrize(("deaths", "delay_s"), [(0, 0), (1, 0), (2, 0.5), (3, 1), (6, 8), (7, 15), (10_000, 15)])
def test_restarts_wait_longer_up_to_a_bound(deaths: int, delay_s: float) -> None:
    assert restart_delay_s(deaths) == delay_s


def test_a_hung_worker_is_killed_once_and_then_started_again(place: SnapshotStorage) -> None:
    worker = place.serving()
    assert worker.probe
    worker.probe.hung = True
    place.tick()
    place.tick()
    place.dies(worker, after_s=30.0)
    place.tick()

    assert worker.done.count("kill") == 1
    assert place.slot.restarts == {DIED: 0, HUNG: 1}
    assert len(place.workers) == 2


def test_a_worker_that_never_comes_to_serve_is_killed(place: SnapshotStorage) -> None:
    place.tick(after_s=slot_module._START_TIMEOUT_S + 1)

    assert place.workers[0].done == ["kill"]


def test_why_a_worker_could_not_serve_is_remembered(place: SnapshotStorage) -> None:
    place.workers[0].report = Report(error="no such database")
    place.dies(place.workers[0])

    assert (place.slot.last_error, place.slot.has_failed) == ("no such database", True)


def test_a_replacement_serves_before_the_old_worker_leaves(place: SnapshotStorage) -> None:
    old = place.serving()
    place.slot.replace()
    place.tick()
    left_before = old.done.copy()
    new = place.serving()

    assert (left_before, old.done, new.done) == ([], ["leave"], [])
    assert place.slot.pids == [new.pid, old.pid]
    assert place.slot.is_replacing
    place.dies(old)
    assert (place.slot.pids, place.slot.is_replacing) == ([new.pid], False)


def test_a_replacement_that_fails_leaves_the_old_worker_in_place(place: SnapshotStorage) -> None:
    old = place.serving()
    place.slot.replace()
    place.dies(place.workers[-1])

    assert (place.slot.failed_replacement, place.slot.is_replacing) == (True, False)
    assert (place.slot.pids, old.done) == ([old.pid], [])


def test_a_replaced_worker_that_does_not_go_is_killed(place: SnapshotStorage) -> None:
    old = place.serving()
    place.slot.replace()
    place.tick()
    place.serving()
    place.tick(after_s=LEAVE_WITHIN_S + 1)

    assert old.done == ["leave", "kill"]


def test_a_worker_that_dies_while_its_replacement_starts_is_missed_until_that_serves(place: SnapshotStorage) -> None:
    old = place.serving()
    place.slot.replace()
    place.dies(old, after_s=60.0)

    assert place.slot.readiness() is None
    new = place.serving()
    assert (place.slot.serves, place.slot.pids) == (True, [new.pid])
    assert len(place.workers) == 2


def test_to_replace_what_is_not_there_is_to_start_it_now(place: SnapshotStorage) -> None:
    for _ in range(3):
        place.dies(place.workers[-1])
        place.tick(after_s=0.5)
    place.dies(place.workers[-1])
    before = len(place.workers)
    place.slot.replace()
    place.tick()

    assert len(place.workers) == before + 1


def test_stopping_reaches_every_worker_there_is(place: SnapshotStorage) -> None:
    old = place.serving()
    place.slot.replace()
    place.slot.terminate()
    place.slot.kill()

    assert [worker.done for worker in (old, place.workers[-1])] == [["terminate", "kill"]] * 2
    assert not place.slot.is_empty()
