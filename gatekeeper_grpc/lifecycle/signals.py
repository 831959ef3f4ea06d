"""Signals of the serving process, and its end, by force if need be."""

import os
import signal
import sys
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NoReturn

import structlog

_log = structlog.get_logger(__name__)

_KERNELS_TURN_S = 0.2


def signal_queue(*numbers: signal.Signals, into: SimpleQueue[int] | None = None) -> SimpleQueue[int]:
    """Return a queue that gets each of these signals from now on; a new one, if there is none to put them into.

    A SimpleQueue, because a handler may put into it while the main thread waits on it; an Event would deadlock.
    """
    signals: SimpleQueue[int] = SimpleQueue() if into is None else into
    for number in numbers:
        signal.signal(number, lambda received, _frame: signals.put(received))
    return signals


def next_signal(signals: SimpleQueue[int]) -> int:
    """Wait for a signal. With a timeout: one that the kernel hands to another thread does not wake the main thread."""
    while True:
        try:
            return signals.get(timeout=0.2)
        except Empty:
            continue


def exit_now(code: int) -> NoReturn:
    """End the process at once, without the interpreter's finalization.

    Finalization freezes all threads, gRPC's among them, and then waits for them or destroys what they use. One in ten
    starts that SIGTERM interrupted hung in it until SIGALRM ended the process, and one died of SIGSEGV.
    """
    with suppress(OSError):  # The reader of our output is gone.
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def exit_by_force_after(deadline_s: float) -> None:
    """End the process at the deadline: a handler that hangs would keep it for ever.

    A thread does it, and says so. Where no thread of Python's gets to run any more, the kernel does it a moment later.
    """
    timer = threading.Timer(deadline_s - _KERNELS_TURN_S, _exit_by_force, [deadline_s])
    timer.daemon = True
    timer.start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, deadline_s)


def _exit_by_force(deadline_s: float) -> None:
    try:
        _log.error("stopped_by_force", deadline_s=deadline_s)
    finally:  # Whoever read the log may have gone as well.
        os._exit(70)
