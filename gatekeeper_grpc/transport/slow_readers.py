"""Frees workers from clients that open a response stream and do not read it.

grpcio sends a response on the stream's worker and waits, for ever, until the client has made room for it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from gatekeeper_grpc.transport.deadlines import Deadlines


class SlowReaders:
    """Cancels calls that cannot get rid of a response in time; only a reset gets through, so clients see CANCELLED."""

    def __init__(self) -> None:
        self._sending: Deadlines[grpc.ServicerContext] = Deadlines("unread_responses", _cancel)

    def guard(self, responses: Iterable[Any], context: grpc.ServicerContext, *, within_s: float) -> Iterator[Any]:
        """Return the same responses; each must be sent `within_s` after it is there."""
        for response in responses:
            with self.sending(context, within_s=within_s):
                yield response  # grpcio asks for the next one when this one is sent

    @contextmanager
    def sending(self, context: grpc.ServicerContext, *, within_s: float) -> Iterator[None]:
        """Cancel the call if the block, which sends one response, takes longer than `within_s`."""
        self._sending.add(context, within_s=within_s)
        try:
            yield
        finally:
            self._sending.remove(context)

    def close(self) -> None:
        """Cancel nothing any more."""
        self._sending.close()


def _cancel(context: grpc.ServicerContext) -> None:
    context.cancel()
