"""Holds back calls that arrive, for moments in which no response may be under way."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall


class CallHold:
    """Open, it costs a call one attribute read. Shut, calls wait in memory, in order, and go on when it opens again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both
        self._waiting: dict[ArrivedCall, Callable[[], None]] = {}
        self.is_shut = False

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Hold back what arrives, for the length of the block."""
        with self._lock:
            self.is_shut = True
        try:
            yield
        finally:
            self._open()

    def keep(self, call: ArrivedCall, go_on: Callable[[], None]) -> bool:
        """Hold a call back; False when the gate is open again: then the caller goes on by itself."""
        with self._lock:
            if self.is_shut:
                self._waiting[call] = go_on
            return self.is_shut

    def waiting(self) -> list[ArrivedCall]:
        """Return the calls that are held back now."""
        with self._lock:
            return list(self._waiting)

    def _open(self) -> None:
        with self._lock:
            self.is_shut = False
            waiting, self._waiting = self._waiting, {}
        for go_on in waiting.values():
            go_on()
