"""Holds new calls back: for moments in which no response may be in transit, or until the server ends."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall


class CallHold:
    """Keeps calls in memory while it is held, and passes them on in order when it is released.

    While it is not held, it costs a call one attribute read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both
        self._pending: dict[ArrivedCall, Callable[[ArrivedCall], None]] = {}
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
        """Hold new calls from now on, and serve none of them."""
        with self._lock:
            self.is_holding = True

    def hold(self, call: ArrivedCall, resume: Callable[[ArrivedCall], None]) -> bool:
        """Keep `call` until the release, then `resume` it. False: not held any more; the caller continues the call."""
        with self._lock:
            if self.is_holding:
                self._pending[call] = resume
            return self.is_holding

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
