"""WatchFlags: checks who wants to be told what; the watcher hub does the telling, long after the RPC has returned."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import grpc

from gatekeeper.v1 import evaluation_service_pb2 as pb
from gatekeeper.v1.evaluation_service_pb2_grpc import EvaluationServiceServicer
from gatekeeper_grpc.wire.watch import check_watch_request


class Revisions(Protocol):
    """What tells whether a revision is there."""

    def at_least(self, revision: int, *, asked_as: str = ...) -> object:
        """Wait until `revision` is served, or raise an error that names the request's field `asked_as`."""
        ...


class ResponseStream(Protocol):
    """The open response stream: sends bytes, without waiting for the client."""

    def send(self, message: bytes, sent: Callable[[], None]) -> bool:
        """Start to send; call `sent` when there is room for more. False: the call is over."""
        ...

    def end(self, error: Exception) -> None:
        """End the call with the status of an error."""
        ...

    def cancel(self) -> None:
        """Cancel the call."""
        ...


class Watchers(Protocol):
    """Who tells watchers what happens."""

    def open(self, outlet: ResponseStream, *, from_revision: int, flag_keys: frozenset[str]) -> Any:
        """Begin to tell; return whom to pass to `leave` when the call is over."""
        ...

    def leave(self, watcher: Any, /) -> None:
        """Forget a watcher."""
        ...


class WatchRpcs(EvaluationServiceServicer):
    """WatchFlags."""

    def __init__(self, revisions: Revisions, watchers: Watchers) -> None:
        self._revisions = revisions
        self._watchers = watchers

    # The chain passes the stream as a third argument; the generated base knows only methods that keep a worker.
    def WatchFlags(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        self, request: pb.WatchFlagsRequest, context: grpc.ServicerContext, outlet: ResponseStream
    ) -> None:
        check_watch_request(request)
        self._revisions.at_least(request.from_revision, asked_as="from_revision")
        watcher = self._watchers.open(
            outlet, from_revision=request.from_revision, flag_keys=frozenset(request.flag_keys)
        )
        leave = partial(self._watchers.leave, watcher)
        if not context.add_callback(leave):
            leave()

    # What the chain looks for.
    WatchFlags.sends_by_response_stream = True  # type: ignore[attr-defined]
