"""How much of a thread's time one kind of work may take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

WINDOW_S: Final = 0.01


class TimeShare:
    """Measures work of one thread, which may take half of each window of 10 ms. Not thread-safe.

    A piece of work that begins within the share is finished, so its own length adds to it.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._window_ends = 0.0
        self._spent_s = 0.0

    def is_spent(self) -> bool:
        """Return whether no more work may begin in this window."""
        if (now := self._clock()) >= self._window_ends:
            self._window_ends, self._spent_s = now + WINDOW_S, 0.0
        return self._spent_s >= WINDOW_S / 2

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the time of the block."""
        began = self._clock()
        try:
            yield
        finally:
            self._spent_s += self._clock() - began
