"""Where calls of open methods stay until their first message is here: waiting for a client costs memory, and no thread.

Anybody may open such a call and send nothing. grpcio gives each a worker that waits: four of them take a four-worker
server down.
"""

import threading
import time
from collections.abc import Callable

import structlog

from gatekeeper_grpc.interceptors.grpcio_call import ArrivedCall
from gatekeeper_grpc.periodic import Periodic
from gatekeeper_grpc.wire.status import RequestTimeout, status_from_error

_log = structlog.get_logger(__name__)
_LOOK_EVERY_S = 0.2


class Reception:
    """Holds calls without a message, and ends those whose message does not come. One thread serves all of them."""

    def __init__(self, *, capacity: int = 2_000) -> None:
        """Start the thread.

        Args:
            capacity: How many calls are held at once; one more ends the oldest, never the newcomer.
        """
        self._capacity = capacity
        self._lock = threading.Lock()  # guards _held
        self._held: dict[ArrivedCall, float] = {}  # call -> when to end it (monotonic); oldest first
        self._too_late = status_from_error(RequestTimeout("the request message did not arrive in time"), "")
        self._looking = Periodic("reception", self._end_overdue, interval_s=_LOOK_EVERY_S)
        self._looking.start()

    def __len__(self) -> int:
        """Count the calls held now."""
        return len(self._held)

    def hold(self, call: ArrivedCall, *, within_s: float, admit: Callable[[], None]) -> None:
        """Keep `call` until its first message is here, then `admit` it; end it when that takes longer than `within_s`.

        For the serving thread: takes constant time, as does `admit`, which runs there too.
        """
        call.receive_then(lambda: self._release(call, admit))
        with self._lock:
            oldest = next(iter(self._held)) if len(self._held) >= self._capacity else None
            self._held[call] = time.monotonic() + within_s
        if oldest is not None:
            self._end(oldest)

    def close(self) -> None:
        """Stop ending calls. For a server that has stopped: grpcio has ended them all by then."""
        self._looking.close()

    def _release(self, call: ArrivedCall, admit: Callable[[], None]) -> None:
        self._forget(call)
        if call.is_live():
            admit()

    def _end(self, call: ArrivedCall) -> None:
        self._forget(call)
        call.refuse_unless_received(self._too_late)

    def _forget(self, call: ArrivedCall) -> None:
        with self._lock:
            self._held.pop(call, None)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        with self._lock:
            overdue = [call for call, end_at in self._held.items() if end_at <= now]
        for call in overdue:
            self._end(call)
        if overdue:
            # One line for all of them: whoever sends headers only must not fill the log.
            _log.info("requests_timed_out", count=len(overdue))
