"""Rolling a fleet: one worker after the other, again on a second request, and not beyond a replacement that fails."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.fleet import slot as slot_module
from gatekeeper_grpc.fleet import supervisor as supervisor_module
from gatekeeper_grpc.fleet.supervisor import WorkerSupervisor
from gatekeeper_grpc.fleet.worker import Command
from gatekeeper_grpc.operations.bearer_token import BearerToken
from tests.support.clocks import Clock
from tests.support.servers import settings_for_tests
from tests.support.workers import FakeProbe, FakeWorker

WORKERS = 3


class Fleet:
    """A supervisor, and the workers that it started, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.workers: list[tuple[int, FakeWorker]] = []
        monkeypatch.setattr(slot_module, "time", self.clock)
        monkeypatch.setattr(supervisor_module, "Worker", self._start)
        self.supervisor = WorkerSupervisor(
            settings_for_tests(workers=WORKERS), Command(arguments=(), environment={}, secrets={}), BearerToken()
        )

    def _start(self, number: int, _command: Command, **_how: bool) -> FakeWorker:
        self.workers.append((number, FakeWorker(len(self.workers) + 1, self.clock)))
        return self.workers[-1][1]

    def reconcile(self) -> None:
        self.supervisor.reconcile()

    def let_serve(self) -> None:
        """Let all workers serve that have been started, and those leave that were asked to."""
        for _, worker in self.workers:
            worker.probe = worker.probe or FakeProbe()
            if "leave" in worker.done:
                worker.code = 0
        self.reconcile()

    def started(self) -> list[int]:
        """The numbers of the workers that have been started, in order."""
        return [number for number, _ in self.workers]


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    fleet = Fleet(monkeypatch)
    fleet.reconcile()
    fleet.let_serve()
    yield fleet
    for _, worker in fleet.workers:
        worker.code = 0
    fleet.supervisor.stop()


def test_a_roll_replaces_one_worker_after_the_other(fleet: Fleet) -> None:
    fleet.supervisor.roll()
    started_by = []
    for _ in range(2 * WORKERS + 2):
        fleet.reconcile()
        started_by.append(len(fleet.workers) - WORKERS)
        fleet.let_serve()

    assert fleet.started() == [1, 2, 3, 1, 2, 3]
    assert [n for n, before in zip(started_by, [0, *started_by], strict=False) if n - before > 1] == []
    assert [worker.done for _, worker in fleet.workers[:WORKERS]] == [["leave", "close"]] * WORKERS


def test_a_roll_that_is_asked_for_again_begins_again(fleet: Fleet) -> None:
    fleet.supervisor.roll()
    fleet.reconcile()
    fleet.let_serve()
    fleet.supervisor.roll()
    for _ in range(4 * WORKERS):
        fleet.reconcile()
        fleet.let_serve()

    assert fleet.started() == [1, 2, 3, 1, 1, 2, 3]


def test_a_replacement_that_fails_ends_the_roll_and_the_old_workers_stay(fleet: Fleet) -> None:
    fleet.supervisor.roll()
    fleet.reconcile()
    fleet.workers[-1][1].code = 1
    with capture_logs() as logs:
        fleet.reconcile()
        fleet.reconcile()

    assert fleet.started() == [1, 2, 3, 1]
    assert [worker.done for _, worker in fleet.workers[:WORKERS]] == [[]] * WORKERS
    assert {"event": "roll_abandoned", "worker": 1, "not_rolled": [1, 2, 3], "log_level": "error"} in logs


def test_a_worker_that_dies_elsewhere_is_started_again_during_a_roll(fleet: Fleet) -> None:
    fleet.clock.now_s += 60.0
    fleet.supervisor.roll()
    fleet.reconcile()
    fleet.workers[2][1].code = -9
    fleet.reconcile()
    fleet.reconcile()

    assert fleet.started() == [1, 2, 3, 1, 3]


def test_readiness_tells_who_is_up(fleet: Fleet) -> None:
    fleet.workers[1][1].probe = None

    readiness = fleet.supervisor.readiness()

    assert readiness.ready
    assert readiness.reasons == ("worker 2 is not up: the log says why; the supervisor starts it again",)


def test_a_supervisor_that_has_not_looked_for_long_is_not_alive(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = fleet.supervisor.is_alive()
    monkeypatch.setattr(supervisor_module, "_HUNG_AFTER_S", -1.0)

    assert (alive, fleet.supervisor.is_alive()) == (True, False)


def test_stopping_drains_a_replacement_too_and_kills_what_stays(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_KILL_MARGIN_S", 0.1)
    fleet.supervisor.roll()
    fleet.reconcile()
    fleet.supervisor._drains_within_s = 0.0
    fleet.supervisor.stop()

    assert [worker.done for _, worker in fleet.workers] == [["terminate", "kill", "close"]] * (WORKERS + 1)


def test_stopping_drains_all_workers_at_once(fleet: Fleet) -> None:
    for _, worker in fleet.workers:
        worker.code = 0
    fleet.supervisor.stop()

    assert [worker.done[0] for _, worker in fleet.workers] == ["terminate"] * WORKERS
