"""Workers of a fleet whose fate a test decides."""

from typing import Any

from gatekeeper_grpc.fleet.report import WorkerReport
from gatekeeper_grpc.operations.readiness import Readiness
from tests.support.clocks import Clock

READY = Readiness(ready=True, stale=False, revision=7, unconfirmed_s=0.5, database=True, reasons=())


class FakeProbe:
    ops_port = 1

    def __init__(self) -> None:
        self.readiness: Readiness | None = READY
        self.hung = False

    def is_hung(self) -> bool:
        return self.hung


class FakeWorker:
    """A worker whose fate is the test's."""

    def __init__(self, pid: int, clock: Clock) -> None:
        self.pid = pid
        self.report: WorkerReport | None = None
        self.probe: FakeProbe | None = None
        self.code: int | None = None
        self.done: list[str] = []
        self._clock = clock
        self._started = clock.now_s

    @property
    def serves(self) -> bool:
        return self.probe is not None

    def exit_code(self) -> int | None:
        return self.code

    def age_s(self) -> float:
        return self._clock.now_s - self._started

    def read_report(self) -> WorkerReport | None:
        return None

    def __getattr__(self, name: str) -> Any:  # terminate, leave, kill, wait, close
        return lambda *_: self.done.append(name)
