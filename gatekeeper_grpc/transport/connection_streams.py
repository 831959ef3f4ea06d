"""How many streams a connection may have open: fewer than calls, so that the other calls on it find a place.

A client may have 100 calls at once on a connection (`listener.OPTIONS`). Beyond that, calls wait in the client without
a word, and most clients open no second connection. A stream may be open for hours and give no place back.
"""

import threading
from functools import partial
from typing import Final

from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall

MAX_STREAMS: Final = 90


class ConnectionStreams:
    """Counts the open streams of each connection. Thread-safe.

    A connection is known by the port of its client, so those over a Unix socket are not counted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _open
        self._open: dict[str, int] = {}

    def add(self, call: ArrivedCall) -> bool:
        """Count a stream until it is over; False if its connection has 90 others."""
        peer = call.peer
        if not peer.startswith(("ipv4:", "ipv6:")):
            return True
        with self._lock:
            count = self._open.get(peer, 0)
            if count == MAX_STREAMS:
                return False
            self._open[peer] = count + 1
        remove = partial(self._remove, peer)
        if not call.when_over(remove):
            remove()
        return True

    def _remove(self, peer: str) -> None:
        with self._lock:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]


def too_many_streams() -> ResourceExhausted:
    """Make the error for a stream that is not added. Without a delay: waiting does not help."""
    return ResourceExhausted(
        f"this connection has {MAX_STREAMS} streams open, as many as it may: open further ones on another connection",
        reason="TOO_MANY_STREAMS",
        metadata={"limit": str(MAX_STREAMS)},
    )
