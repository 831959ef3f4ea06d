"""WatchFlags: checks the request and opens the stream at the watcher hub, which sends after the RPC has returned."""

from functools import partial

import grpc

from gatekeeper_client.v1 import evaluation_service_pb2 as pb
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceServicer
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.watcher_hub import ResponseStream, WatcherHub
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
        leave = partial(self._watchers.leave, watcher)
        if not context.add_callback(leave):
            leave()

    # The interceptor chain reads this mark.
    WatchFlags.sends_by_response_stream = True  # type: ignore[attr-defined]
