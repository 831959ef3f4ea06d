"""Things that must be over in time, and one thread that ends those that are not: a timer per call costs too much."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from gatekeeper_grpc.periodic import Periodic

_log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 0.2

Thing = TypeVar("Thing")


class Deadlines(Generic[Thing]):
    """Ends each thing that is still here `within_s` after it was added, give or take 0.2 s.

    Args:
        name: Names the thread and, in the log, what is ended: one line for all that is ended at a time.
        end: Ends one thing, which has been removed by then; on the thread, or on that of `make_room`.
    """

    def __init__(self, name: str, end: Callable[[Thing], None]) -> None:
        self._name = name
        self._end = end
        self._lock = threading.Lock()  # guards _ends_at
        self._ends_at: dict[Thing, float] = {}  # monotonic; in the order of arrival
        self._looking = Periodic(name, self._end_overdue, interval_s=_LOOK_EVERY_S)
        self._looking.start()

    def __len__(self) -> int:
        """Count what is here now."""
        return len(self._ends_at)

    def add(self, thing: Thing, *, within_s: float) -> None:
        """Start the time of `thing`. Takes constant time, like every method here."""
        with self._lock:
            self._ends_at[thing] = time.monotonic() + within_s

    def remove(self, thing: Thing) -> None:
        """Forget `thing`, which is over, or was never here."""
        with self._lock:
            self._ends_at.pop(thing, None)

    def make_room(self, capacity: int) -> None:
        """End what has been here for the longest, if there are `capacity` things."""
        with self._lock:
            oldest = next(iter(self._ends_at)) if len(self._ends_at) >= capacity else None
        if oldest is not None:
            self.remove(oldest)
            self._end(oldest)

    def close(self) -> None:
        """End nothing any more."""
        self._looking.close()

    def _end_overdue(self) -> None:
        overdue = self._remove_overdue(time.monotonic())
        for thing in overdue:
            self._end(thing)
        if overdue:
            _log.info("overdue", what=self._name, count=len(overdue))

    def _remove_overdue(self, now: float) -> list[Thing]:
        with self._lock:
            overdue = [thing for thing, ends_at in self._ends_at.items() if ends_at <= now]
            for thing in overdue:
                del self._ends_at[thing]
        return overdue
