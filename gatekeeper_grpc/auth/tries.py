"""Counts the tries of passwords by address, so that those who have tried least are served first."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gatekeeper_grpc.auth.addresses import address_of


@dataclass(slots=True)
class _Tally:
    tries: int
    last_at: float


class Tries:
    """The tries that have not succeeded, or not yet. Thread-safe; every method takes microseconds.

    A try counts from its arrival, even if it is refused later: if it counted when its password was found wrong, all
    that arrive together would be first tries.

    Args:
        window_s: How long after its last try an address is forgotten.
        remembered: How many addresses are remembered; those without a try for longest are forgotten first.
        clock: Monotonic seconds.
    """

    def __init__(self, *, window_s: float, remembered: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._remembered = remembered
        self._clock = clock
        self._lock = threading.Lock()  # guards the tallies
        self._tallies: OrderedDict[str, _Tally] = OrderedDict()  # by address; the one with the oldest try comes first

    def note(self, peer: str) -> int:
        """Count a try; return how many came before it."""
        address, now = address_of(peer), self._clock()
        with self._lock:
            tally = self._tallies.setdefault(address, _Tally(tries=0, last_at=now))
            before = tally.tries if now - tally.last_at < self._window_s else 0
            tally.tries, tally.last_at = before + 1, now
            self._tallies.move_to_end(address)
            if len(self._tallies) > self._remembered:
                self._tallies.popitem(last=False)
        return before

    def succeeded(self, peer: str) -> None:
        """Take back one try of a peer, whose password was right."""
        with self._lock:
            tally = self._tallies.get(address_of(peer))
            if tally is not None:
                tally.tries = max(0, tally.tries - 1)
