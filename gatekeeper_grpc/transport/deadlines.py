"""Ends calls that exceed a time limit: one thread for a server, which sleeps until the earliest deadline.

A timer per call would cost more than the call.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import structlog

_log = structlog.get_logger(__name__)

# Deadlines this close together share one wake-up.
_MIN_SLEEP_S = 0.02
_JOIN_TIMEOUT_S = 5.0

Item = TypeVar("Item")


class Deadlines:
    """The deadlines of one server, in groups.

    The thread starts with the first deadline. Removing an item does not wake it: after the last item is removed, the
    thread wakes up once more at most.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        """Guards all attributes, and the groups."""
        self.wakes_at = math.inf
        """When the thread reads the groups again; no deadline in them is earlier."""
        self._changed = threading.Condition(self.lock)
        self._groups: list[DeadlineGroup[Any]] = []
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def group(self, name: str, end: Callable[[Item], object], *, is_logged: bool = True) -> "DeadlineGroup[Item]":
        """Add a group.

        Args:
            name: What the log calls its items.
            end: Ends one item, which is removed by then. It must not block.
            is_logged: Whether the log tells how many items end.
        """
        group = DeadlineGroup(self, name, end, is_logged=is_logged)
        self._groups.append(group)
        return group

    def close(self) -> None:
        """End nothing from now on."""
        with self.lock:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT_S)

    def wake_by(self, due: float) -> None:
        """Have the thread wake up at `due` at the latest. For the groups, which hold `lock`."""
        if not self._is_closed and (self._thread is not None or self._start()):
            self.wakes_at = due
            self._changed.notify()

    def end_overdue(self) -> None:
        """End the items that are due. For the thread, and for tests with their own clock."""
        with self.lock:
            now = self.clock()
            overdue = [(group, items) for group in self._groups if (items := group.remove_overdue(now))]
            earliest = min((group.earliest() for group in self._groups), default=math.inf)
            self.wakes_at = max(earliest, now + _MIN_SLEEP_S)
        for group, items in overdue:
            group.end_all(items)

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name="gatekeeper-deadlines", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # No thread can be had now. The next item tries again; this is grpcio's serving thread.
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        while self._sleep():
            self.end_overdue()

    def _sleep(self) -> bool:
        """Wait for the earliest deadline; return False once closed."""
        with self.lock:
            while not self._is_closed and (left_s := self.wakes_at - self.clock()) > 0:
                self._changed.wait(None if left_s == math.inf else left_s)
            return not self._is_closed


class DeadlineGroup(Generic[Item]):
    """Items of one kind, each with a deadline. `add` and `remove` take constant time."""

    def __init__(self, deadlines: Deadlines, name: str, end: Callable[[Item], object], *, is_logged: bool) -> None:
        self._deadlines = deadlines
        self._lock = deadlines.lock
        self._clock = deadlines.clock
        self._name = name
        self._end = end
        self._is_logged = is_logged
        self._due: dict[Item, float] = {}  # in the order of arrival

    def __len__(self) -> int:
        """Count the items."""
        return len(self._due)

    def add(self, item: Item, *, within_s: float) -> None:
        """End `item` in `within_s`, at most 0.02 s later, unless it is removed. An item keeps its first deadline."""
        with self._lock:
            due = self._due.setdefault(item, self._clock() + within_s)
            if due < self._deadlines.wakes_at:
                self._deadlines.wake_by(due)

    def remove(self, item: Item) -> None:
        """Forget `item`, if it is here."""
        with self._lock:
            self._due.pop(item, None)

    def earliest(self) -> float:
        """Return the earliest deadline, infinite without items; with the lock held."""
        return min(self._due.values(), default=math.inf)

    def remove_overdue(self, now: float) -> list[Item]:
        """Remove and return what is due; with the lock held."""
        overdue = [item for item, due in self._due.items() if due <= now]
        for item in overdue:
            del self._due[item]
        return overdue

    def end_all(self, items: list[Item]) -> None:
        """End items that are removed; without the lock."""
        for item in items:
            try:
                self._end(item)
            except Exception:  # noqa: BLE001 - the next item must still end, and the thread live
                _log.exception("deadline_failed", group=self._name)
        if self._is_logged:
            _log.info("deadline_exceeded", group=self._name, count=len(items))
