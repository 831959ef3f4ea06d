"""Paces bulk evaluation: it works in slices of half a millisecond, and checks between two of them whether to go on.

All threads of a process share one interpreter, and a message of 5,000 users takes it for 100 ms. A unary call needs it
several times: grpcio's serving thread for each event, and a worker if there is one. Each time it would wait for the
5 ms after which CPython takes the interpreter from a thread. So it is taken after half a millisecond while a bulk
message is evaluated. And bulk evaluation pauses after each slice while unary calls come: those that wait then have the
interpreter. At other times, taking it so soon costs unary calls 7 % of their CPU and gains nothing.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Final, TypeVar

from gatekeeper_grpc.domain.errors import ResourceExhausted

_Item = TypeVar("_Item")

SLICE_S: Final = 0.0005
# The kernel adds some 60 us. A thread that waits takes the interpreter in less.
PAUSE_S: Final = 0.0002
# After the last unary call, the next one is expected for so long: a client of 50 calls a second is one that calls.
EXPECTED_S: Final = 0.02
# Below, threads that take turns cost more than they gain.
SWITCH_INTERVAL_S: Final = 0.0005
DEFAULT_BUDGET_S: Final = 20.0
FLAGS_PER_BUDGET: Final = 1_000
# Flags are evaluated so many at a time: in a fifth of a millisecond, and with little lost between two portions.
PORTION: Final = 250


class SharedInterpreter:
    """Has the interpreter of this process pass from thread to thread within half a millisecond, while it is in use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both
        self._uses = 0
        self._usual_s = sys.getswitchinterval()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Share the interpreter inside the block. Blocks may overlap, in any threads."""
        with self._lock:
            self._uses += 1
            if self._uses == 1:
                self._usual_s = sys.getswitchinterval()
                sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            yield
        finally:
            with self._lock:
                self._uses -= 1
                if not self._uses:
                    sys.setswitchinterval(self._usual_s)


_shared_interpreter: Final = SharedInterpreter()


class Pacer:
    """Paces the messages of all bulk streams of a server.

    Args:
        idle_s: For how many seconds no unary call has come. When that is long, nothing pauses.
        budget_s: The CPU time that one message may take for each 1,000 flags, or part of them.
        sleep: Gives the interpreter away for so many seconds.
    """

    def __init__(
        self,
        idle_s: Callable[[], float] = lambda: math.inf,
        *,
        budget_s: float = DEFAULT_BUDGET_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._idle_s = idle_s
        self._budget_s = budget_s
        self._sleep = sleep

    def pace(self, *, flags: int, is_active: Callable[[], bool]) -> "Pace":
        """Return the pace of one message.

        Args:
            flags: How many flags are evaluated for each of its users.
            is_active: Whether the client still waits for the results.
        """
        budget_s = self._budget_s * max(1, math.ceil(flags / FLAGS_PER_BUDGET))
        return Pace(self._idle_s, self._sleep, budget_s=budget_s, is_active=is_active)


class _ClientLeft(Exception):
    """Nobody waits for the message any more."""


class Pace:
    """The pace of one message: a slice ends between two of its users, or between two portions of the flags of one."""

    def __init__(
        self,
        idle_s: Callable[[], float],
        sleep: Callable[[float], None],
        *,
        budget_s: float,
        is_active: Callable[[], bool],
    ) -> None:
        self._idle_s = idle_s
        self._sleep = sleep
        self._budget_s = budget_s
        self._is_active = is_active
        self._ends_at = self._slice_ends = math.inf

    def through(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield `items`, which are made one by one and cost CPU when they are; end early if the client has left.

        Raises:
            ResourceExhausted: The message takes more than its budget of CPU time.
        """
        # CPU time of this thread: on a busy machine a message takes longer, but not more.
        self._ends_at = time.thread_time() + self._budget_s
        self._slice_ends = time.perf_counter() + SLICE_S
        with _shared_interpreter.used(), suppress(_ClientLeft):
            for item in items:
                yield item
                self._end_slice()

    def portions(self, plans: Sequence[_Item]) -> Iterable[_Item]:
        """Return `plans` for the making of one item; slices also end between portions of them.

        Raises:
            ResourceExhausted: As for `through`, while they are iterated over.
        """
        if len(plans) <= PORTION:
            return plans
        return chain.from_iterable(self._cut(plans))

    def _cut(self, plans: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
        for begin in range(0, len(plans), PORTION):
            yield plans[begin : begin + PORTION]
            self._end_slice()

    def _end_slice(self) -> None:
        """Begin the next slice, if it is time for it."""
        if time.perf_counter() < self._slice_ends:
            return
        if not self._is_active():
            raise _ClientLeft
        if time.thread_time() > self._ends_at:
            raise _over_budget(self._budget_s)
        if self._idle_s() < EXPECTED_S:
            self._sleep(PAUSE_S)
        self._slice_ends = time.perf_counter() + SLICE_S


def _over_budget(budget_s: float) -> ResourceExhausted:
    return ResourceExhausted(
        f"this message takes more than {budget_s:g} s of CPU time: send fewer contexts in a message, shorter"
        " attributes, or the keys of the flags that you need",
        reason="CPU_BUDGET_EXCEEDED",
        metadata={"budget_s": f"{budget_s:g}"},
    )
