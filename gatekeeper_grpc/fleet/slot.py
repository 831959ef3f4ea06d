"""Keeps the worker of one number alive: restarts it if it dies, kills it if it hangs, replaces it on request."""

import time
from collections import Counter
from collections.abc import Callable

import structlog

from gatekeeper_grpc.fleet.worker import Worker
from gatekeeper_grpc.operations.readiness import Readiness

_log = structlog.get_logger(__name__)

# A worker that dies sooner than this failed to start: then an immediate restart does not help.
_YOUNG_S = 10.0
_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 15.0
# A worker that does not serve by then is killed.
_START_TIMEOUT_S = 120.0

DIED, HUNG = "died", "hung"


def restart_delay_s(young_deaths: int) -> float:
    """Return the seconds to wait before the next start, after `young_deaths` (0 or more) failed starts in a row.

    After the first there is no delay: it may be an accident.
    """
    return 0.0 if young_deaths <= 1 else min(_BACKOFF_FIRST_S * 2.0 ** min(young_deaths - 2, 10), _BACKOFF_MAX_S)


class Slot:
    """The slot of one worker. All work happens in `reconcile`, on one thread, which never blocks.

    Args:
        number: From 1.
        start: Starts a worker of this number, one that replaces another or not.
        leave_within_s: How long a replaced worker may take to end its calls.
    """

    def __init__(self, number: int, start: Callable[[int, bool], Worker], *, leave_within_s: float) -> None:
        self.number = number
        self.restarts: Counter[str] = Counter({DIED: 0, HUNG: 0})
        self.last_error = ""
        """Why the last worker could not serve; empty if it did not report it."""
        self.failed_replacement = False
        """The last replacement did not serve, so the old worker stayed."""
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
        """Whether a worker has reported that it serves."""
        return self._current is not None and self._current.serves

    @property
    def has_failed(self) -> bool:
        """Whether the worker has died and its restart is delayed."""
        return self._current is None and self._young_deaths > 0

    @property
    def is_replacing(self) -> bool:
        """Whether a replacement is under way."""
        return self._next is not None or self._leaving is not None

    @property
    def workers(self) -> list[Worker]:
        """All its workers, the serving one first."""
        return [worker for worker in (self._current, self._next, self._leaving) if worker is not None]

    @property
    def ops_port(self) -> int | None:
        """Where the serving worker's own pages are; None when there is none."""
        worker = self._current
        return worker.probe.ops_port if worker is not None and worker.probe is not None else None

    def readiness(self) -> Readiness | None:
        """Return the readiness of the serving worker; None if there is none, or it does not answer."""
        worker = self._current
        return worker.probe.readiness if worker is not None and worker.probe is not None else None

    def replace(self) -> None:
        """Start a replacement; the current worker leaves when it serves. If it does not, it is killed."""
        self.failed_replacement = False
        if self.serves:
            self._next = self._start(self.number, True)
            _log.info("worker_started", worker=self.number, pid=self._next.pid, replaces=True)
        else:
            self._start_at = 0.0

    def reconcile(self) -> None:
        """Compare the workers with what they should be, and act on it once."""
        self._reconcile_current()
        self._reconcile_next()
        self._reconcile_leaving()

    def _reconcile_current(self) -> None:
        worker = self._current
        if worker is None:
            self._start_when_due()
        elif worker.exit_code() is not None:
            self._reap(worker)
        elif self._is_hung(worker):
            self._kill_hung(worker)
        else:
            self._read_report(worker)

    def _start_when_due(self) -> None:
        if self._next is None and time.monotonic() >= self._start_at:
            self._current = self._start(self.number, False)
            _log.info("worker_started", worker=self.number, pid=self._current.pid)

    def _reap(self, worker: Worker) -> None:
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

    def _read_report(self, worker: Worker) -> None:
        report = worker.read_report()
        if report is not None and not report.error:
            _log.info("worker_serving", worker=self.number, pid=worker.pid, took_s=round(worker.age_s(), 3))

    def _reconcile_next(self) -> None:
        worker = self._next
        if worker is None:
            return
        if worker.exit_code() is not None or worker.age_s() > _START_TIMEOUT_S:
            self._abandon_replacement(worker)
            return
        self._read_report(worker)
        if worker.probe is not None and worker.probe.readiness is not None:
            self._switch_to(worker)

    def _abandon_replacement(self, worker: Worker) -> None:
        _log.error(
            "replacement_failed",
            worker=self.number,
            pid=worker.pid,
            exit_code=worker.exit_code(),
            error=_error_of(worker) or None,
        )
        worker.kill()
        self.failed_replacement = True
        self._leaving, self._next = worker, None

    def _switch_to(self, worker: Worker) -> None:
        self._leaving, self._current, self._next = self._current, worker, None
        self._kill_leaving_at = time.monotonic() + self._leave_within_s
        if self._leaving is not None:
            self._leaving.leave()

    def _reconcile_leaving(self) -> None:
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
    """Return why a worker could not serve, if it has reported it."""
    worker.read_report()
    return worker.report.error if worker.report else ""
