"""Budgets that several instances share: asked for one call, or told in the background what each has let pass."""

from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Final, NamedTuple, Protocol

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.rate_limiter import RateLimiter

# Of one limit at a time: those who call most.
_MOST_CALLERS: Final = 1_000


class Taken(NamedTuple):
    """What a budget that is shared says to a call."""

    wait_s: float
    """How long the call has to wait; 0: it was counted."""
    full_in_s: float
    """After how long the budget is full."""


class SharedCounts(Protocol):
    """Adds up what the instances have let pass. It waits briefly, and raises Unavailable if it is away."""

    def add(self, limit: str, counts: Mapping[str, int]) -> Mapping[str, int]:
        """Add to the number of calls of each caller; return the numbers over all instances since some time."""
        ...


class SharedBudgets(SharedCounts, Protocol):
    """Has one budget of each caller for all instances. It waits briefly, and raises Unavailable if it is away."""

    def take(self, limit: str, caller: str, rate: Rate) -> Taken:
        """Count a call of a caller under a limit, unless the budget over all instances does not suffice."""
        ...


class CountExchange:
    """Has instances that count for themselves act as one, but for what they let pass between two runs.

    Not thread-safe.

    Args:
        shared: Where the numbers of all instances come together.
        limiters: Those that keep counts.
    """

    def __init__(self, shared: SharedCounts, limiters: Sequence[RateLimiter]) -> None:
        self._shared = shared
        # Of each limiter: the numbers of callers of late, as they were at the last run.
        self._known: dict[RateLimiter, Mapping[str, int]] = {limiter: {} for limiter in limiters}

    def has_work(self) -> bool:
        """Return whether a run may have an effect: somebody has called, here or elsewhere, since the run before."""
        return any(limiter.has_counts or known for limiter, known in self._known.items())

    def run(self) -> None:
        """Tell what was let pass here since the last run, and charge what was let pass elsewhere."""
        for limiter, known in self._known.items():
            mine = limiter.drain_counts()
            callers = nlargest(_MOST_CALLERS, known.keys() | mine.keys(), key=lambda caller: mine.get(caller, 0))
            try:
                numbers = self._shared.add(limiter.name, {caller: mine.get(caller, 0) for caller in callers})
            except Unavailable:
                self._known[limiter] = {}
                continue
            for caller, number in numbers.items():
                _charge(limiter, caller, number - known.get(caller, number) - mine.get(caller, 0))
            # One who has not called anywhere, and owes nothing here, is asked for no more.
            self._known[limiter] = {
                caller: number
                for caller, number in numbers.items()
                if number != known.get(caller) or not limiter.is_full(caller)
            }


def _charge(limiter: RateLimiter, caller: str, calls: int) -> None:
    if calls > 0:
        limiter.charge(caller, calls)
