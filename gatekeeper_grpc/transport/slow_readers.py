"""Cancels calls of clients that open a response stream and do not read it, which frees their workers.

grpcio sends a response on the stream's worker, which waits without a limit until the client has room for it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from gatekeeper_grpc.transport.deadlines import DeadlineGroup, Deadlines


class SlowReaders:
    """Cancels a call if a response is not sent in time. The client receives CANCELLED: only a reset reaches it."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._sending: DeadlineGroup[grpc.ServicerContext] = deadlines.group("unread_responses", _cancel)

    def guard(self, responses: Iterable[Any], context: grpc.ServicerContext, *, within_s: float) -> Iterator[Any]:
        """Yield the same responses, and require that each is sent within `within_s`."""
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


def _cancel(context: grpc.ServicerContext) -> None:
    context.cancel()
