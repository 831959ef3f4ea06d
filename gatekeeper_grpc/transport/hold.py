"""Holds new calls back: for moments in which no response may be in transit, or until the server ends."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gatekeeper_grpc.transport.goaway import peer_of
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall


class CallHold:
    """Keeps calls of all servers of a process while it is held, and passes them on in order when it is released.

    While it is not held, it costs a call one attribute read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all three
        self._pending: dict[ArrivedCall, Callable[[ArrivedCall], None]] = {}
        self._for_good = False
        self.is_holding = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold new calls for the length of the block."""
        with self._lock:
            self.is_holding = True
        try:
            yield
        finally:
            self._release()

    def hold_for_good(self) -> None:
        """Hold new calls from now on, and serve none of them; but serve those over a Unix socket, which nobody ends."""
        with self._lock:
            self.is_holding = self._for_good = True

    def hold(self, call: ArrivedCall, resume: Callable[[ArrivedCall], None]) -> bool:
        """Keep `call` until the release, then `resume` it. False: not held any more; the caller continues the call."""
        with self._lock:
            holds = self.is_holding and not (self._for_good and peer_of(call.peer) is None)
            if holds:
                call.make_waitable()
                self._pending[call] = resume
            return holds

    def pending(self) -> list[ArrivedCall]:
        """Return the calls that are held now."""
        with self._lock:
            return list(self._pending)

    def _release(self) -> None:
        with self._lock:
            self.is_holding = False
            pending, self._pending = self._pending, {}
        for call, resume in pending.items():
            resume(call)
