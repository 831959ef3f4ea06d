"""Counts how often each caller calls, and says who must wait: on one instance, in memory, in a microsecond.

docs/decisions/0037-rate-limits.md says why it is not a library.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from gatekeeper_grpc.domain.errors import RateLimited
from gatekeeper_grpc.domain.rate import Rate

_REMEMBERED: Final = 32_768
# Of each call that is counted: more than one, so that those who stay away are forgotten faster than others come.
_FORGOTTEN_AT_ONCE: Final = 2
# Sums of floats: they must not refuse the last call of a burst.
_ROUNDING: Final = 1e-6


class Budget(NamedTuple):
    """What a rate limit leaves to a caller."""

    rate: Rate
    remaining: int
    """How many calls are allowed now."""
    full_in_s: float
    """After how long without a call it would be full."""


class RateLimiter:
    """Gives each caller a budget of `rate.burst` calls that fills at the rate. Thread-safe; never waits.

    Of a caller only the time is kept at which the budget is full (the generic cell rate algorithm), and of a caller
    whose budget is full nothing. At most `remembered` callers are known, some 200 bytes each; those who have not called
    for longest are forgotten first, and then have a full budget.

    Args:
        name: Names the limit to clients and operators, such as "login".
        rate: How often each caller may call.
        remembered: How many callers are remembered.
        keeps_counts: Whether to keep how often each caller has called, for other instances.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        rate: Rate,
        *,
        remembered: int = _REMEMBERED,
        keeps_counts: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.rate = rate
        self._interval_s = rate.interval_s
        self._window_s = rate.burst * rate.interval_s
        self._remembered = remembered
        self._clock = clock
        self._lock = threading.Lock()  # guards the four below
        self._full_at: OrderedDict[str, float] = OrderedDict()  # the one who has called longest ago is first
        self._allowed = self._refused = 0
        self._counts: dict[str, int] | None = {} if keeps_counts else None  # since they were drained

    def __len__(self) -> int:
        """Count the callers who are remembered."""
        return len(self._full_at)

    def is_full(self, caller: str) -> bool:
        """Return whether a caller has its whole budget."""
        return self._full_at.get(caller, -math.inf) <= self._clock()

    @property
    def allowed(self) -> int:
        """How many calls were let pass."""
        return self._allowed

    @property
    def refused(self) -> int:
        """How many calls were refused."""
        return self._refused

    def take(self, caller: str, cost: int = 1) -> Budget:
        """Count a call, unless the budget of its caller does not suffice: a refused call costs nothing.

        Args:
            caller: Whose budget it is.
            cost: For how many calls it counts; more than a full budget counts as a full one.

        Raises:
            RateLimited: The budget does not suffice; says from when on it will.
        """
        now = self._clock()
        with self._lock:
            full_at = max(self._full_at.get(caller, now), now) + min(cost * self._interval_s, self._window_s)
            wait_s = full_at - now - self._window_s
            if wait_s > _ROUNDING:
                self._refused += 1
                raise RateLimited.of(self.name, self.rate, retry_after_s=wait_s)
            self._allowed += 1
            self._remember(caller, full_at, now)
            if self._counts is not None and len(self._counts) < self._remembered:
                self._counts[caller] = self._counts.get(caller, 0) + cost
        return self.budget(full_in_s=full_at - now)

    def charge(self, caller: str, cost: int) -> None:
        """Count calls that another instance has let pass: the budget may fall below zero, by a full one at most."""
        now = self._clock()
        with self._lock:
            full_at = max(self._full_at.get(caller, now), now) + cost * self._interval_s
            self._remember(caller, min(full_at, now + 2 * self._window_s), now)

    def refuse(self, caller: str, *, for_s: float) -> RateLimited:
        """Have a caller wait who has used up the budget that all instances share; return the refusal of this call."""
        now = self._clock()
        with self._lock:
            self._refused += 1
            full_at = max(self._full_at.get(caller, now), now + self._window_s - self._interval_s + for_s)
            self._remember(caller, full_at, now)
        return RateLimited.of(self.name, self.rate, retry_after_s=for_s)

    @property
    def has_counts(self) -> bool:
        """Whether anybody has called since the counts were drained."""
        return bool(self._counts)

    def drain_counts(self) -> Mapping[str, int]:
        """Return how often each caller has called since the last time."""
        with self._lock:
            counts, self._counts = self._counts or {}, {}
            return counts

    def budget(self, *, full_in_s: float) -> Budget:
        """Return the budget that is full after so long."""
        return Budget(self.rate, max(0, int((self._window_s - full_in_s) / self._interval_s + _ROUNDING)), full_in_s)

    def _remember(self, caller: str, full_at: float, now: float) -> None:
        """Keep when a budget is full, and forget some that are; with the lock held."""
        times = self._full_at
        times[caller] = full_at
        times.move_to_end(caller)
        for _ in range(_FORGOTTEN_AT_ONCE):
            oldest = next(iter(times))
            if times[oldest] > now and len(times) <= self._remembered:
                return
            del times[oldest]
