"""Paces bulk evaluation: it works in slices of a millisecond, and checks between two of them whether to go on.

All threads of a process share one interpreter, and a message of 5,000 users takes it for 100 ms. A unary call needs it
several times: first grpcio's serving thread for each event, then a worker. Each time it would wait for the 5 ms after
which CPython takes the interpreter from a thread. So it is taken after half a millisecond while a bulk message is
evaluated, and bulk evaluation pauses after each slice while unary calls are in flight. At other times, taking it so
soon costs unary calls 7 % of their CPU and gains nothing.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from gatekeeper_grpc.domain.errors import ResourceExhausted

_Item = TypeVar("_Item")

SLICE_S: Final = 0.001
# For each unary call in flight. The kernel adds some 60 us. A thread that waits takes the interpreter in less.
PAUSE_S: Final = 0.0001
# Below, threads that take turns cost more than they gain.
SWITCH_INTERVAL_S: Final = 0.0005
DEFAULT_BUDGET_S: Final = 20.0
FLAGS_PER_BUDGET: Final = 1_000


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
        waiting: Counts the unary calls in flight. While there are none, nothing pauses.
        budget_s: The CPU time that one message may take for each 1,000 flags, or part of them.
        sleep: Gives the interpreter away for so many seconds.
    """

    def __init__(
        self,
        waiting: Callable[[], int] = lambda: 0,
        *,
        budget_s: float = DEFAULT_BUDGET_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._waiting = waiting
        self._budget_s = budget_s
        self._sleep = sleep

    def paced(self, items: Iterable[_Item], *, flags: int, is_active: Callable[[], bool]) -> Iterator[_Item]:
        """Yield `items`, which are made one by one for one message; end early if the client has left.

        Args:
            items: Each costs CPU when it is asked for.
            flags: How many flags are evaluated for each.
            is_active: Whether the client still waits for them.

        Raises:
            ResourceExhausted: The message takes more than its budget of CPU time.
        """
        with _shared_interpreter.used():
            yield from self._in_slices(items, flags=flags, is_active=is_active)

    def _in_slices(self, items: Iterable[_Item], *, flags: int, is_active: Callable[[], bool]) -> Iterator[_Item]:
        budget_s = self._budget_s * max(1, math.ceil(flags / FLAGS_PER_BUDGET))
        # CPU time of this thread: on a busy machine a message takes longer, but not more.
        ends_at = time.thread_time() + budget_s
        slice_ends = time.perf_counter() + SLICE_S
        for item in items:
            yield item
            if time.perf_counter() < slice_ends:
                continue
            if not is_active():
                return
            if time.thread_time() > ends_at:
                raise _over_budget(budget_s)
            if waiting := self._waiting():
                self._sleep(PAUSE_S * waiting)
            slice_ends = time.perf_counter() + SLICE_S


def _over_budget(budget_s: float) -> ResourceExhausted:
    return ResourceExhausted(
        f"this message takes more than {budget_s:g} s of CPU time: send fewer contexts in a message, shorter"
        " attributes, or the keys of the flags that you need",
        reason="CPU_BUDGET_EXCEEDED",
        metadata={"budget_s": f"{budget_s:g}"},
    )
