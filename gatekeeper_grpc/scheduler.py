"""Background work: a scheduler for repeated tasks, and a thread of its own for a task that must never wait."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from gatekeeper_grpc.domain.errors import GatekeeperError

_log = structlog.get_logger(__name__)

_JOIN_TIMEOUT_S = 5.0
_WENT_WELL_S = 5.0
_OVERDUE_AFTER_S = 30.0
# Tasks that are due so close to each other run in one wake-up of the scheduler.
_TOGETHER_S = 0.05


def _logs_failures(
    name: str, run: Callable[[], object], *, clock: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """Wrap a task so that it never raises. It logs a failure once, until that changes, and the first success after."""
    failure: tuple[str, str] | None = None

    def run_once() -> None:
        nonlocal failure
        before, began_at = failure, clock()
        try:
            run()
        except GatekeeperError as exc:
            failure = (exc.reason, str(exc))
            # A run that lasted, as listening does, succeeded before it failed.
            if failure != before or clock() - began_at > _WENT_WELL_S:
                _log.warning("task_failed", task=name, reason=exc.reason, error=str(exc))
        except Exception:  # noqa: BLE001 - the next run may succeed; a dead thread would fail silently
            _log.exception("task_failed", task=name)
        else:
            failure = None
            if before is not None:
                _log.info("task_recovered", task=name)

    return run_once


class RepeatingThread:
    """Runs one task at once and then every `interval_s`, in a thread of its own, from `start` to `close`.

    For tasks that must not wait for any other: refreshing, listening, hang watch, client keys. All others belong to a
    `Scheduler`. A failing run is logged once, and the first success after it.

    Args:
        name: Names the thread and the task in the log, such as "refresh".
        task: What to run.
        interval_s: How long to wait between runs.
        wait: Waits at most that many seconds, or until there is something to do; by default, until `close`.
    """

    def __init__(
        self,
        name: str,
        task: Callable[[], object],
        *,
        interval_s: float,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._run_once = _logs_failures(name, task)
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._thread = threading.Thread(target=self._run, name=f"gatekeeper-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread, unless it was started before."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """Let the current run be the last; does not wait for it."""
        self._stopping.set()

    def close(self, *, timeout_s: float = _JOIN_TIMEOUT_S) -> None:
        """Stop, and wait for the current run to end, at most `timeout_s`."""
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def is_stopping(self) -> bool:
        """Whether a long run should end."""
        return self._stopping.is_set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._run_once()
            self._wait(self._interval_s)


class OnDemandThread:
    """Runs a task when it is requested, in a thread of its own, which starts with the first request, until `close`.

    All requests that arrive during a run are served by one further run. A failing run is logged once, and the first
    success after it.
    """

    def __init__(self, name: str, task: Callable[[], object]) -> None:
        self._task = task
        self._starting = threading.Lock()  # orders the requests that find no thread
        self._is_requested = threading.Event()
        self._thread = RepeatingThread(
            name, self._serve, interval_s=threading.TIMEOUT_MAX, wait=self._is_requested.wait
        )

    def request(self) -> None:
        """Run the task soon, once and from its beginning; does not wait."""
        self._is_requested.set()
        with self._starting:
            self._thread.start()

    def close(self, *, timeout_s: float = _JOIN_TIMEOUT_S) -> None:
        """Serve no further request, and wait for the current run to end, at most `timeout_s`."""
        self._thread.stop()
        self._is_requested.set()  # It wakes the thread.
        self._thread.close(timeout_s=timeout_s)

    def _serve(self) -> None:
        self._is_requested.clear()
        self._task()


@dataclass(eq=False, kw_only=True)
class Task:
    """One task of a scheduler, whose condition guards what changes."""

    name: str
    run: Callable[[], None]
    interval_s: float
    blocks: bool
    is_due: Callable[[], bool]
    changed: threading.Condition
    wake_at: float
    """When the scheduler looks at it next: to run it, or because its run is overdue; infinity once that is logged."""
    began_at: float | None = None
    """When the current run began; None between runs."""
    is_closed: bool = False

    @property
    def is_running(self) -> bool:
        """Whether a run has begun and not ended."""
        return self.began_at is not None

    def close(self, *, timeout_s: float = _JOIN_TIMEOUT_S) -> None:
        """Run no more, and wait for the current run to end, at most `timeout_s`."""
        with self.changed:
            self.is_closed = True
            self.changed.wait_for(lambda: not self.is_running, timeout_s)


class Scheduler:
    """Runs repeated tasks, from `start` to `close`: at once, and then every `interval_s` after a run has ended.

    One thread wakes up when a task is due. It runs what never blocks itself. What may block runs in a thread that ends
    with the run, so that a held task delays no other. A task never runs twice at the same time. A failing run is logged
    once, and the first success after it. A run that takes too long is logged once as `task_overdue`, and its end as
    `task_overdue_ended`.

    Args:
        overdue_after_s: A run that takes longer is logged.
        clock: Monotonic seconds.
    """

    def __init__(
        self, *, overdue_after_s: float = _OVERDUE_AFTER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._overdue_after_s = overdue_after_s
        self._clock = clock
        self._changed = threading.Condition()  # guards all below, and the state of the tasks
        self._tasks: list[Task] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name="gatekeeper-scheduler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(
        self,
        name: str,
        run: Callable[[], object],
        *,
        interval_s: float,
        blocks: bool,
        is_due: Callable[[], bool] = lambda: True,
    ) -> Task:
        """Run a task from now on.

        Args:
            name: Names the task in the log, such as "maintenance", and its thread if it has one.
            run: What to run.
            interval_s: How long to wait between runs.
            blocks: Whether a run may wait for anything, such as a database or a disk.
            is_due: Asked on the scheduler's thread before a run: False skips it. Must not block.
        """
        task = Task(
            name=name,
            run=_logs_failures(name, run, clock=self._clock),
            interval_s=interval_s,
            blocks=blocks,
            is_due=is_due,
            changed=self._changed,
            wake_at=self._clock(),
        )
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()
        return task

    def close(self, *, timeout_s: float = _JOIN_TIMEOUT_S) -> None:
        """Run nothing more, and wait for current runs to end, at most `timeout_s` in all."""
        with self._changed:
            self._is_closed = True
            for task in self._tasks:
                task.is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not any(task.is_running for task in self._tasks), timeout_s)

    def _loop(self) -> None:
        while not self._is_closed:
            self._wake_tasks()
            with self._changed:
                if not self._is_closed:
                    self._changed.wait(self._pause_s())

    def _pause_s(self) -> float | None:
        """Return for how long nothing is to be done; None: until something changes."""
        wake_at = min((task.wake_at for task in self._tasks), default=math.inf)
        return None if math.isinf(wake_at) else max(0.0, wake_at - self._clock())

    def _wake_tasks(self) -> None:
        """Begin the runs whose time has come, and log those that have become overdue."""
        with self._changed:
            now = self._clock()
            self._tasks = [task for task in self._tasks if task.is_running or not task.is_closed]
            woken = [task for task in self._tasks if task.wake_at <= now + _TOGETHER_S]
            overdue = [task for task in woken if task.is_running]
            due = [task for task in woken if not task.is_running]
            for task in overdue:
                task.wake_at = math.inf
            for task in due:
                task.began_at, task.wake_at = now, now + self._overdue_after_s
        for task in overdue:
            _log.warning("task_overdue", task=task.name, seconds=round(self._overdue_after_s, 1))
        for task in due:
            self._start(task)

    def _start(self, task: Task) -> None:
        try:
            if not task.is_due():
                self._end(task)
            elif task.blocks:
                threading.Thread(target=self._run, args=(task,), name=f"gatekeeper-{task.name}", daemon=True).start()
            else:
                self._run(task)
        except Exception:  # noqa: BLE001 - one task must not stop the others
            _log.exception("task_failed", task=task.name)
            self._end(task)

    def _run(self, task: Task) -> None:
        task.run()
        self._end(task)

    def _end(self, task: Task) -> None:
        with self._changed:
            now = self._clock()
            took_s = now - (task.began_at or now)
            was_overdue = math.isinf(task.wake_at)
            task.began_at, task.wake_at = None, now + task.interval_s
            self._changed.notify_all()
        if was_overdue:
            _log.info("task_overdue_ended", task=task.name, seconds=round(took_s, 1))
