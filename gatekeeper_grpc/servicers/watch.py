"""WatchFlags: checks the request and opens the stream at the watcher hub, which sends after the RPC has returned."""

from functools import partial
from typing import Any

import grpc

from gatekeeper_client.v1 import evaluation_service_pb2 as pb
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceServicer
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.watcher_hub import ResponseStream, Watcher, WatcherHub
from gatekeeper_grpc.instrumentation.counters import WATCH_STREAMS_ENDED
from gatekeeper_grpc.transport.stream_life import is_too_old
from gatekeeper_grpc.wire.watch import check_watch_request


class WatchRpcs(EvaluationServiceServicer):
    """WatchFlags."""

    def __init__(self, cache: SnapshotCache, watchers: WatcherHub) -> None:
        self._cache = cache
        self._watchers = watchers

    # The chain passes the stream as a third argument; the generated base class has no such method.
    def WatchFlags(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        self, request: pb.WatchFlagsRequest, context: grpc.ServicerContext, stream: ResponseStream
    ) -> None:
        check_watch_request(request)
        self._cache.at_least(request.from_revision, asked_as="from_revision")
        watcher = self._watchers.open(
            stream, from_revision=request.from_revision, flag_keys=frozenset(request.flag_keys)
        )
        leave = partial(self._leave, watcher, context)
        if not context.add_callback(leave):
            leave()

    def _leave(self, watcher: Watcher, context: Any) -> None:
        self._watchers.leave(watcher)
        WATCH_STREAMS_ENDED.labels("slow" if watcher.is_slow else _cause_of_end(context)).inc()

    # The interceptor chain reads this mark.
    WatchFlags.sends_by_response_stream = True  # type: ignore[attr-defined]


def _cause_of_end(context: Any) -> str:
    """Return why a stream has ended, by the status that the server gave it; without one, its client ended it."""
    match context.code():
        case grpc.StatusCode.UNAUTHENTICATED:
            return "key"
        case grpc.StatusCode.UNAVAILABLE:
            return "age" if is_too_old(context.details()) else "shutdown"
        case _:
            return "client"
