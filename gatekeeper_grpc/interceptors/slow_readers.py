"""Frees workers from clients that open a response stream and do not read it.

grpcio sends a response on the stream's worker and waits, for ever, until the client has made room for it.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from gatekeeper_grpc.interceptors.deadlines import Deadlines


class SlowReaders:
    """Cancels calls that cannot get rid of a response in time. Their clients see CANCELLED: nothing else gets through."""

    def __init__(self) -> None:
        self._sending: Deadlines[grpc.ServicerContext] = Deadlines("unread_responses", _cancel)

    def guard(self, responses: Iterable[Any], context: grpc.ServicerContext, *, within_s: float) -> Iterator[Any]:
        """Return the same responses; each must be sent `within_s` after it is there."""
        for response in responses:
            self._sending.add(context, within_s=within_s)
            try:
                yield response  # grpcio asks for the next one when this one is sent
            finally:
                self._sending.remove(context)

    def close(self) -> None:
        """Cancel nothing any more."""
        self._sending.close()


def _cancel(context: grpc.ServicerContext) -> None:
    context.cancel()
