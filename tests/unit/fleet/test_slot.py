"""One worker of a number: started again when it dies, killed when it hangs, replaced without a gap."""

from collections.abc import Iterator
from typing import cast

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.fleet import slot as slot_module
from gatekeeper_grpc.fleet.report import WorkerReport
from gatekeeper_grpc.fleet.slot import DIED, HUNG, Slot, restart_delay_s
from gatekeeper_grpc.fleet.worker import Worker
from tests.support.clocks import Clock
from tests.support.workers import FakeProbe, FakeWorker

LEAVE_WITHIN_S = 5.0


class OneSlot:
    """A slot, its clock, and the workers that were started for it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.workers: list[FakeWorker] = []
        self.are_replacements: list[bool] = []
        self.slot = Slot(1, self._start, leave_within_s=LEAVE_WITHIN_S)

    def _start(self, _number: int, replaces: bool) -> Worker:
        self.are_replacements.append(replaces)
        self.workers.append(FakeWorker(len(self.workers) + 1, self.clock))
        return cast("Worker", self.workers[-1])

    def tick(self, *, after_s: float = 0.0) -> None:
        self.clock.now_s += after_s
        self.slot.reconcile()

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.slot.workers]

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
def slot(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneSlot]:
    slot = OneSlot()
    monkeypatch.setattr(slot_module, "time", slot.clock)
    with capture_logs():
        slot.tick()
        yield slot


def test_a_worker_is_started_at_once(slot: OneSlot) -> None:
    assert (len(slot.workers), slot.slot.serves) == (1, False)


def test_a_worker_that_lived_long_is_started_again_at_once(slot: OneSlot) -> None:
    slot.dies(slot.serving(), after_s=60.0)
    slot.tick()

    assert len(slot.workers) == 2
    assert slot.slot.restarts == {DIED: 1, HUNG: 0}


def test_a_worker_that_keeps_dying_young_is_restarted_ever_later(slot: OneSlot) -> None:
    waits = []
    for deaths in range(1, 5):
        slot.dies(slot.workers[-1], after_s=1.0)
        died_at = slot.clock.now_s
        while len(slot.workers) == deaths:
            slot.tick(after_s=0.25)
        waits.append(slot.clock.now_s - died_at)

    assert waits == [0.25, 0.5, 1.0, 2.0]


@pytest.mark.parametrize(("deaths", "delay_s"), [(0, 0), (1, 0), (2, 0.5), (3, 1), (6, 8), (7, 15), (10_000, 15)])
def test_restarts_wait_longer_up_to_a_bound(deaths: int, delay_s: float) -> None:
    assert restart_delay_s(deaths) == delay_s


def test_a_hung_worker_is_killed_once_and_then_started_again(slot: OneSlot) -> None:
    worker = slot.serving()
    assert worker.probe
    worker.probe.hung = True
    slot.tick()
    slot.tick()
    slot.dies(worker, after_s=30.0)
    slot.tick()

    assert worker.done.count("kill") == 1
    assert slot.slot.restarts == {DIED: 0, HUNG: 1}
    assert len(slot.workers) == 2


def test_a_worker_that_never_comes_to_serve_is_killed(slot: OneSlot) -> None:
    slot.tick(after_s=slot_module._START_TIMEOUT_S + 1)

    assert slot.workers[0].done == ["kill"]


def test_why_a_worker_could_not_serve_is_remembered(slot: OneSlot) -> None:
    slot.workers[0].report = WorkerReport(error="no such database")
    slot.dies(slot.workers[0])

    assert (slot.slot.last_error, slot.slot.has_failed) == ("no such database", True)


def test_a_replacement_serves_before_the_old_worker_leaves(slot: OneSlot) -> None:
    old = slot.serving()
    slot.slot.replace()
    slot.tick()
    left_before = old.done.copy()
    new = slot.serving()

    assert (left_before, old.done, new.done) == ([], ["leave"], [])
    assert slot.are_replacements == [False, True]
    assert slot.pids() == [new.pid, old.pid]
    assert slot.slot.is_replacing
    slot.dies(old)
    assert (slot.pids(), slot.slot.is_replacing) == ([new.pid], False)


def test_a_replacement_that_fails_leaves_the_old_worker_serving(slot: OneSlot) -> None:
    old = slot.serving()
    slot.slot.replace()
    failed = slot.workers[-1]
    slot.dies(failed)

    assert (slot.slot.failed_replacement, slot.slot.is_replacing) == (True, False)
    assert (slot.pids(), old.done) == ([old.pid], [])
    assert failed.done == ["kill", "close"]


def test_a_replacement_that_hangs_is_killed_and_the_old_worker_stays(slot: OneSlot) -> None:
    old = slot.serving()
    slot.slot.replace()
    slot.tick(after_s=200.0)
    hanging = slot.workers[-1]

    assert (slot.slot.failed_replacement, slot.pids()) == (True, [old.pid, hanging.pid])
    slot.dies(hanging)
    assert (slot.pids(), slot.slot.is_replacing, old.done) == ([old.pid], False, [])


def test_a_replaced_worker_that_does_not_go_is_killed(slot: OneSlot) -> None:
    old = slot.serving()
    slot.slot.replace()
    slot.tick()
    slot.serving()
    slot.tick(after_s=LEAVE_WITHIN_S + 1)

    assert old.done == ["leave", "kill"]


def test_a_worker_that_dies_during_its_replacement_is_not_restarted(slot: OneSlot) -> None:
    old = slot.serving()
    slot.slot.replace()
    slot.dies(old, after_s=60.0)

    assert slot.slot.readiness() is None
    new = slot.serving()
    assert (slot.slot.serves, slot.pids()) == (True, [new.pid])
    assert len(slot.workers) == 2


def test_replacing_a_dead_worker_starts_it_at_once(slot: OneSlot) -> None:
    for _ in range(3):
        slot.dies(slot.workers[-1])
        slot.tick(after_s=0.5)
    slot.dies(slot.workers[-1])
    before = len(slot.workers)
    slot.slot.replace()
    slot.tick()

    assert len(slot.workers) == before + 1
