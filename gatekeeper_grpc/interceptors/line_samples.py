"""Which of many similar calls get a line in the log: the first ten a minute; how many more there were is told later."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

LINES_A_MINUTE: Final = 10
MINUTE_S: Final = 60.0
"""For how long a sample is counted; the next one begins then."""
# Anybody may call from many addresses. Further ones share a sample.
_REMEMBERED: Final = 1_024
_OTHERS: Final = "others"


class Sample(NamedTuple):
    """What calls that get lines together have in common."""

    method: str
    code: str
    peer: str
    """The address of the client, without a port."""


class LineSamples:
    """Counts calls by what they have in common. Thread-safe; takes microseconds.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the two below
        self._minute_ends_at = clock() + MINUTE_S
        self._counts: Counter[Sample] = Counter()

    def admits(self, sample: Sample) -> bool:
        """Count a call; return whether it gets a line."""
        with self._lock:
            if sample not in self._counts and len(self._counts) >= _REMEMBERED:
                sample = sample._replace(peer=_OTHERS)
            self._counts[sample] += 1
            return self._counts[sample] <= LINES_A_MINUTE

    def left_out(self) -> dict[Sample, int]:
        """Return how many calls got no line in the minute that has ended; nothing during a minute."""
        now = self._clock()
        with self._lock:
            if now < self._minute_ends_at:
                return {}
            counts, self._counts = self._counts, Counter()
            self._minute_ends_at = now + MINUTE_S
        return {sample: count - LINES_A_MINUTE for sample, count in counts.items() if count > LINES_A_MINUTE}
