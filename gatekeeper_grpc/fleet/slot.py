"""Keeps one worker of a number alive: starts it again when it dies, kills it when it hangs, replaces it on request."""

import time
from collections import Counter
from collections.abc import Callable

import structlog

from gatekeeper_grpc.fleet.worker import Worker
from gatekeeper_grpc.operations.readiness import Readiness

_log = structlog.get_logger(__name__)

# What dies sooner than this after its start dies of its start: then starting it at once again helps nobody.
_YOUNG_S = 10.0
_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 15.0
# A worker that has not come to serve by now never will.
_START_TIMEOUT_S = 120.0

_KILL_TAKES_S = 1.0

DIED, HUNG = "died", "hung"


def restart_delay_s(young_deaths: int) -> float:
    """Seconds to wait before the next start, after so many (0 or more) deaths in a row soon after the start.

    None after the first: most deaths are an accident, and each moment without the worker counts.
    """
    return 0.0 if young_deaths <= 1 else min(_BACKOFF_FIRST_S * 2.0 ** min(young_deaths - 2, 10), _BACKOFF_MAX_S)


class Slot:
    """The place of one worker. Everything happens in `tick`, on one thread, which never waits.

    Args:
        number: From 1.
        start: Starts a worker of this number.
        leave_within_s: How long a worker that was replaced may take to end its calls.
    """

    def __init__(self, number: int, start: Callable[[int], Worker], *, leave_within_s: float) -> None:
        self.number = number
        self.restarts: Counter[str] = Counter({DIED: 0, HUNG: 0})
        self.last_error = ""
        """Why the last worker that could not serve could not."""
        self.failed_replacement = False
        """The last replacement did not come to serve; the worker it was for stays."""
        self._start = start
        self._leave_within_s = leave_within_s
        self._current: Worker | None = None
        self._next: Worker | None = None
        self._leaving: Worker | None = None
        self._kill_leaving_at = 0.0
        self._killed: Worker | None = None
        self._young_deaths = 0
        self._start_at = 0.0

    @property
    def serves(self) -> bool:
        """Whether a worker serves, as far as is known."""
        return self._current is not None and self._current.serves

    @property
    def has_failed(self) -> bool:
        """Whether the worker has died and the next one waits for its time."""
        return self._current is None and self._young_deaths > 0

    @property
    def is_replacing(self) -> bool:
        """Whether a replacement is under way."""
        return self._next is not None or self._leaving is not None

    @property
    def pids(self) -> list[int]:
        """The processes there are, the serving one first."""
        return [worker.pid for worker in self._workers()]

    @property
    def ops_port(self) -> int | None:
        """Where the serving worker's own pages are; None when there is none."""
        worker = self._current
        return worker.probe.ops_port if worker is not None and worker.probe is not None else None

    def readiness(self) -> Readiness | None:
        """Return what the serving worker says of itself; None when there is none, or it does not answer."""
        worker = self._current
        return worker.probe.readiness if worker is not None and worker.probe is not None else None

    def replace(self) -> None:
        """Start another worker, and when it serves, have the present one leave. One that does not serve is not kept."""
        self.failed_replacement = False
        if self.serves:
            self._next = self._start(self.number)
            _log.info("worker_started", worker=self.number, pid=self._next.pid, replaces=True)
        else:
            self._start_at = 0.0

    def tick(self) -> None:
        """Look after everything once."""
        self._tend_current()
        self._tend_next()
        self._tend_leaving()

    def terminate(self) -> None:
        """Have all its workers drain."""
        for worker in self._workers():
            worker.terminate()

    def kill(self) -> None:
        """End all its workers."""
        for worker in self._workers():
            worker.kill()

    def is_empty(self) -> bool:
        """Tell whether all its workers have ended."""
        return all(worker.exit_code() is not None for worker in self._workers())

    def close(self) -> None:
        """Forget its workers, which have ended."""
        for worker in self._workers():
            worker.close()

    def _workers(self) -> list[Worker]:
        return [worker for worker in (self._current, self._next, self._leaving) if worker is not None]

    def _tend_current(self) -> None:
        worker = self._current
        if worker is None:
            self._start_in_time()
        elif worker.exit_code() is not None:
            self._bury(worker)
        elif self._is_hung(worker):
            self._kill_hung(worker)
        else:
            self._listen_to(worker)

    def _start_in_time(self) -> None:
        if self._next is None and time.monotonic() >= self._start_at:
            self._current = self._start(self.number)
            _log.info("worker_started", worker=self.number, pid=self._current.pid)

    def _bury(self, worker: Worker) -> None:
        cause = HUNG if worker is self._killed else DIED
        self._young_deaths = self._young_deaths + 1 if worker.age_s() < _YOUNG_S else 0
        delay_s = restart_delay_s(self._young_deaths)
        self.last_error = _error_of(worker)
        _log.error(
            "worker_died",
            worker=self.number,
            pid=worker.pid,
            exit_code=worker.exit_code(),
            cause=cause,
            restart_in_s=delay_s,
            error=self.last_error or None,
        )
        self.restarts[cause] += 1
        self._start_at = time.monotonic() + delay_s
        worker.close()
        self._current = None

    def _is_hung(self, worker: Worker) -> bool:
        if worker is self._killed:
            return False
        if worker.probe is not None:
            return worker.probe.is_hung()
        return worker.age_s() > _START_TIMEOUT_S

    def _kill_hung(self, worker: Worker) -> None:
        _log.error("worker_hung", worker=self.number, pid=worker.pid)
        self._killed = worker
        worker.kill()

    def _listen_to(self, worker: Worker) -> None:
        report = worker.hear()
        if report is not None and not report.error:
            _log.info("worker_serving", worker=self.number, pid=worker.pid, took_s=round(worker.age_s(), 3))

    def _tend_next(self) -> None:
        worker = self._next
        if worker is None:
            return
        if worker.exit_code() is not None or worker.age_s() > _START_TIMEOUT_S:
            self._give_up_on(worker)
            return
        self._listen_to(worker)
        if worker.probe is not None and worker.probe.readiness is not None:
            self._hand_over_to(worker)

    def _give_up_on(self, worker: Worker) -> None:
        _log.error(
            "replacement_failed",
            worker=self.number,
            pid=worker.pid,
            exit_code=worker.exit_code(),
            error=_error_of(worker) or None,
        )
        worker.kill()
        worker.wait(_KILL_TAKES_S)
        worker.close()
        self.failed_replacement = True
        self._next = None

    def _hand_over_to(self, worker: Worker) -> None:
        self._leaving, self._current, self._next = self._current, worker, None
        self._kill_leaving_at = time.monotonic() + self._leave_within_s
        if self._leaving is not None:
            self._leaving.leave()

    def _tend_leaving(self) -> None:
        worker = self._leaving
        if worker is None:
            return
        if worker.exit_code() is None:
            if time.monotonic() > self._kill_leaving_at:
                worker.kill()
            return
        _log.info("worker_left", worker=self.number, pid=worker.pid, exit_code=worker.exit_code())
        worker.close()
        self._leaving = None


def _error_of(worker: Worker) -> str:
    """Return why a worker could not serve, if it has said so."""
    worker.hear()
    return worker.report.error if worker.report else ""
