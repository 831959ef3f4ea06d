"""Background work: a scheduler for repeated tasks, and a thread of its own for a task that must never wait."""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import structlog

from gatekeeper_grpc.domain.errors import GatekeeperError

_log = structlog.get_logger(__name__)

_JOIN_TIMEOUT_S = 5.0
_WENT_WELL_S = 5.0
_OVERDUE_AFTER_S = 30.0
# Tasks that are due so close to each other run in one wake-up of the scheduler.
_TOGETHER_S = 0.05
_WORKERS = 3


class _Attempts:
    """Runs a task. Logs a failure once, until the failure changes, and the first success after it."""

    def __init__(self, name: str, run: Callable[[], object], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._run = run
        self._clock = clock
        # How the last run failed, if it did.
        self._failure: tuple[str, str] | None = None

    def run_once(self) -> None:
        began_at = self._clock()
        try:
            self._run()
        except GatekeeperError as exc:
            failure = (exc.reason, str(exc))
            # A run that lasted, as listening does, succeeded before it failed.
            if failure != self._failure or self._clock() - began_at > _WENT_WELL_S:
                _log.warning("task_failed", task=self._name, reason=exc.reason, error=str(exc))
            self._failure = failure
        except Exception:  # noqa: BLE001 - the next run may succeed; a dead thread would fail silently
            _log.exception("task_failed", task=self._name)
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        if self._failure is not None:
            self._failure = None
            _log.info("task_recovered", task=self._name)


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
        self._attempts = _Attempts(name, task)
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
            self._attempts.run_once()
            self._wait(self._interval_s)


class OnDemandThread:
    """Runs a task when it is requested, in a thread that lives as long as there are requests, until `close`.

    One thread runs at a time. All requests that arrive during a run are served by one further run. A failing run is
    logged once, and the first success after it.
    """

    def __init__(self, name: str, task: Callable[[], object]) -> None:
        self._name = name
        self._attempts = _Attempts(name, task)
        self._lock = threading.Lock()  # guards all below
        self._is_requested = False
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def request(self) -> None:
        """Run the task soon, once and from its beginning; does not wait."""
        with self._lock:
            self._is_requested = True
            if self._thread is None and not self._is_closed:
                thread = threading.Thread(target=self._run, name=f"gatekeeper-{self._name}", daemon=True)
                thread.start()  # It waits for this lock before it ends.
                self._thread = thread

    def close(self, *, timeout_s: float = _JOIN_TIMEOUT_S) -> None:
        """Serve no further request, and wait for the current run to end, at most `timeout_s`."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        while self._take_request():
            self._attempts.run_once()

    def _take_request(self) -> bool:
        with self._lock:
            is_taken, self._is_requested = self._is_requested and not self._is_closed, False
            if not is_taken:
                self._thread = None
            return is_taken


class Task:
    """One task of a scheduler. The scheduler's condition guards its state."""

    def __init__(
        self,
        name: str,
        attempts: _Attempts,
        changed: threading.Condition,
        *,
        interval_s: float,
        overdue_after_s: float,
        blocks: bool,
        is_due: Callable[[], bool],
    ) -> None:
        self.name = name
        self.attempts = attempts
        self.interval_s = interval_s
        self.overdue_after_s = overdue_after_s
        self.blocks = blocks
        self.is_due = is_due
        self.next_at = 0.0
        self.dispatched_at: float | None = None
        """When the current run was dispatched; None between runs."""
        self.is_running = False
        self.is_overdue = False
        self.is_closed = False
        self._changed = changed

    def close(self, *, timeout_s: float = _JOIN_TIMEOUT_S) -> None:
        """Run no more, and wait for the current run to end, at most `timeout_s`."""
        with self._changed:
            self.is_closed = True
            self._changed.wait_for(lambda: not self.is_running, timeout_s)


class Scheduler:
    """Runs repeated tasks, from `start` to `close`: at once, and then every `interval_s` after a run has ended.

    One thread wakes up when a task is due. It runs what never blocks itself, and gives what may block to a few
    workers, whose threads start when they are first needed. A task never runs twice at the same time. A failing run is
    logged once, and the first success after it. A run that takes too long, waiting for a worker included, is logged
    once as `task_overdue`, and its end as `task_overdue_ended`.

    Args:
        workers: How many tasks may block at the same time; one more waits.
        clock: Monotonic seconds.
    """

    def __init__(self, *, workers: int = _WORKERS, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._max_workers = workers
        self._changed = threading.Condition()  # guards all below, and the state of the tasks
        self._tasks: list[Task] = []
        self._is_closed = False
        self._workers: list[threading.Thread] = []
        self._dispatched: SimpleQueue[Task | None] = SimpleQueue()
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
        after_s: float = 0.0,
        is_due: Callable[[], bool] = lambda: True,
        overdue_after_s: float = _OVERDUE_AFTER_S,
    ) -> Task:
        """Run a task from now on.

        Args:
            name: Names the task in the log, such as "maintenance".
            run: What to run.
            interval_s: How long to wait between runs.
            blocks: Whether a run may wait for anything, such as a database or a disk.
            after_s: How long to wait before the first run.
            is_due: Asked on the scheduler's thread before a run: False skips it. Must not block.
            overdue_after_s: A run that takes longer is logged.
        """
        attempts = _Attempts(name, run, clock=self._clock)
        task = Task(
            name,
            attempts,
            self._changed,
            interval_s=interval_s,
            overdue_after_s=overdue_after_s,
            blocks=blocks,
            is_due=is_due,
        )
        with self._changed:
            task.next_at = self._clock() + after_s
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
        deadline = time.monotonic() + timeout_s
        for _ in self._workers:
            self._dispatched.put(None)
        for thread in (self._thread, *self._workers):
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _loop(self) -> None:
        while not self._is_closed:
            self._run_due()
            with self._changed:
                if not self._is_closed:
                    self._changed.wait(self._pause_s())

    def _pause_s(self) -> float | None:
        """Return for how long nothing is to be done; None while there is no task."""
        wake_at = [task.next_at for task in self._tasks if task.dispatched_at is None]
        wake_at += [
            task.dispatched_at + task.overdue_after_s
            for task in self._tasks
            if task.dispatched_at is not None and not task.is_overdue
        ]
        return max(0.0, min(wake_at) - self._clock()) if wake_at else None

    def _run_due(self) -> None:
        now = self._clock()
        with self._changed:
            self._tasks = [task for task in self._tasks if not task.is_closed]
            due = [task for task in self._tasks if task.dispatched_at is None and task.next_at <= now + _TOGETHER_S]
            overdue = [task for task in self._tasks if self._becomes_overdue(task, now)]
        for task in overdue:
            _log.warning("task_overdue", task=task.name, seconds=round(task.overdue_after_s, 1))
        for task in due:
            self._start(task, now)

    def _becomes_overdue(self, task: Task, now: float) -> bool:
        is_late = task.dispatched_at is not None and now - task.dispatched_at >= task.overdue_after_s
        is_news = is_late and not task.is_overdue
        task.is_overdue = is_late
        return is_news

    def _start(self, task: Task, now: float) -> None:
        if not self._is_due(task):
            task.next_at = now + task.interval_s
            return
        with self._changed:
            task.dispatched_at = now
        if task.blocks:
            self._dispatch(task)
        else:
            self._run(task)

    def _is_due(self, task: Task) -> bool:
        try:
            return task.is_due()
        except Exception:  # noqa: BLE001 - one task must not stop the others
            _log.exception("task_failed", task=task.name)
            return False

    def _dispatch(self, task: Task) -> None:
        with self._changed:
            busy = sum(other.blocks and other.dispatched_at is not None for other in self._tasks)
            if len(self._workers) < min(busy, self._max_workers) and not self._is_closed:
                name = f"gatekeeper-background-{len(self._workers)}"
                self._workers.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._workers[-1].start()
        self._dispatched.put(task)

    def _work(self) -> None:
        while task := self._dispatched.get():
            self._run(task)

    def _run(self, task: Task) -> None:
        with self._changed:
            task.is_running = not task.is_closed
        if task.is_running:
            task.attempts.run_once()
        self._end(task)

    def _end(self, task: Task) -> None:
        now = self._clock()
        with self._changed:
            took_s = now - (task.dispatched_at or now)
            was_overdue, task.is_overdue = task.is_overdue, False
            task.is_running, task.dispatched_at = False, None
            task.next_at = now + task.interval_s
            self._changed.notify_all()
        if was_overdue:
            _log.info("task_overdue_ended", task=task.name, seconds=round(took_s, 1))
