"""How many streams a connection may have open, and how many watchers an address: a stream may be open for hours.

A client may have 100 calls at once on a connection (`listener.OPTIONS`). Beyond that, calls wait in the client without
a word, and most clients open no second connection. So a connection has fewer streams than calls.
"""

import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final

from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.transport.arrival import stranger
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.wire.status import status_from_error

MAX_STREAMS: Final = 90
"""Of a connection."""


class StreamLimit:
    """Counts the open streams of each owner. Thread-safe.

    Args:
        most: How many each may have.
        owner_of: Whose a stream is; None: it is not counted.
        error: What a client is told whose stream is not added.
    """

    def __init__(
        self, most: int, *, owner_of: Callable[[ArrivedCall], Hashable | None], error: ResourceExhausted
    ) -> None:
        self._most = most
        self._owner_of = owner_of
        self._lock = threading.Lock()  # guards _open
        self._open: dict[Hashable, int] = {}
        self.refusal = status_from_error(error, "")

    def add(self, call: ArrivedCall) -> bool:
        """Count a stream until it is over; False if its owner has as many others as it may."""
        owner = self._owner_of(call)
        if owner is None:
            return True
        with self._lock:
            count = self._open.get(owner, 0)
            if count >= self._most:
                return False
            self._open[owner] = count + 1
        remove = partial(self._remove, owner)
        if not call.when_over(remove):
            remove()
        return True

    def _remove(self, owner: Hashable) -> None:
        with self._lock:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]


def streams_of_connection() -> StreamLimit:
    """Limit the streams of a connection, which is known by the port of its client: none over a Unix socket."""
    # Without a delay: waiting does not help.
    error = ResourceExhausted(
        f"this connection has {MAX_STREAMS} streams open, as many as it may: open further ones on another connection",
        reason="TOO_MANY_STREAMS",
        metadata={"limit": str(MAX_STREAMS)},
    )
    return StreamLimit(MAX_STREAMS, owner_of=_connection_of, error=error)


def watchers_of_address(most: int, *, is_exempt: Callable[[str], bool]) -> StreamLimit:
    """Limit the open WatchFlags of an address.

    Args:
        most: How many it may have.
        is_exempt: Whether those of what gRPC calls a peer are not counted.
    """
    error = ResourceExhausted(
        f"this address has {most} WatchFlags streams open, as many as it may: close some",
        reason="TOO_MANY_WATCHERS",
        metadata={"limit": str(most)},
    )
    return StreamLimit(most, owner_of=partial(_address_of, is_exempt=is_exempt), error=error)


def _connection_of(call: ArrivedCall) -> str | None:
    peer = call.peer
    return peer if peer.startswith(("ipv4:", "ipv6:")) else None


def _address_of(call: ArrivedCall, *, is_exempt: Callable[[str], bool]) -> Hashable | None:
    return None if is_exempt(call.client) else stranger(call.client).owner.name
