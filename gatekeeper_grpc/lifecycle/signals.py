"""Signals of the serving process, and its end, by force if necessary."""

import faulthandler
import os
import select
import signal
import threading
from queue import Empty, SimpleQueue

import structlog

_log = structlog.get_logger(__name__)

# How long the kernel's timer waits for the thread that ends the process with a log line.
_KERNEL_TIMER_MARGIN_S = 0.2
# A signal wakes the wait at once. This is only how long a lost wake-up could last.
_WAIT_STEP_S = 5.0


def report_crashes() -> None:
    """Print the stacks of all threads to standard error when the interpreter crashes, for example with SIGSEGV."""
    faulthandler.enable()


def signal_queue(*numbers: signal.Signals, into: SimpleQueue[int] | None = None) -> SimpleQueue[int]:
    """Return a queue that receives each of these signals from now on: `into`, or a new one.

    A SimpleQueue, because a handler may put into it while the main thread waits on it; an Event would deadlock.
    """
    signals: SimpleQueue[int] = SimpleQueue() if into is None else into
    for number in numbers:
        signal.signal(number, lambda received, _frame: signals.put(received))
    return signals


def interrupt_at(*numbers: signal.Signals, into: SimpleQueue[int]) -> None:
    """Have each of these signals interrupt the main thread from now on: as KeyboardInterrupt, and in a queue as well.

    Python drops what is raised in a callback of a weak reference or in a destructor. The signal is not lost: it is the
    first in the queue of those that wait for the next one.
    """

    def interrupt(received: int, _frame: object) -> None:
        into.put(received)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)


def next_signal(signals: SimpleQueue[int]) -> int:
    """Wait for a signal, asleep.

    The kernel may deliver a signal to any thread, and the main thread, which runs the handler, sleeps on. But the
    interpreter writes a byte to the wake-up descriptor from whichever thread received it.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        while True:
            try:
                return signals.get_nowait()
            except Empty:
                select.select([woken], [], [], _WAIT_STEP_S)
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(wake)


def exit_by_force_after(deadline_s: float) -> None:
    """End the process at the deadline, even if a call hangs.

    A thread ends it with a log line. If no Python thread can run any more, the kernel ends it a moment later.
    """
    timer = threading.Timer(deadline_s - _KERNEL_TIMER_MARGIN_S, _exit_by_force, [deadline_s])
    timer.daemon = True
    timer.start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, deadline_s)


def _exit_by_force(deadline_s: float) -> None:
    try:
        _log.error("stopped_by_force", deadline_s=deadline_s)
    finally:  # The reader of the log may have gone, too.
        os._exit(70)
