"""A test double for services that ask Gatekeeper: EvaluationService in the process of the test, without a database.

Answers come from the real evaluator, behind the real interceptors, on a free port of the loopback interface:

>>> import grpc
>>> from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
>>> from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
>>> from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
>>> from gatekeeper_grpc.testing import serve
>>> alice = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))
>>> with serve({"new_checkout": False}) as gatekeeper, grpc.insecure_channel(gatekeeper.address) as channel:
...     stub = EvaluationServiceStub(channel)
...     print(stub.EvaluateFlags(alice).flags["new_checkout"])
...     revision = gatekeeper.set_flag("new_checkout", users={"alice": True})
...     print(stub.EvaluateFlags(alice).flags["new_checkout"])
False
True
"""

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from types import MappingProxyType
from typing import Self

from gatekeeper_client.v1.evaluation_service_pb2_grpc import add_EvaluationServiceServicer_to_server
from gatekeeper_grpc.cache.change_history import ChangeHistory
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.watcher_hub import WatcherHub
from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.domain.errors import NotFound
from gatekeeper_grpc.domain.flag import VARIANTS, Flag, FlagConfig
from gatekeeper_grpc.domain.flag_change import FlagChange, FlagChanges
from gatekeeper_grpc.domain.mutation import ChangeType
from gatekeeper_grpc.domain.segment import Segment, SegmentConfig
from gatekeeper_grpc.domain.snapshot import Snapshot, SnapshotDelta
from gatekeeper_grpc.domain.user_index import UserEntry
from gatekeeper_grpc.interceptors.authentication import refuse_token
from gatekeeper_grpc.interceptors.chain import Stages
from gatekeeper_grpc.servicers.evaluation import EvaluationServicer
from gatekeeper_grpc.transport.admission import CallPools, PoolName
from gatekeeper_grpc.transport.listener import bind, new_server
from gatekeeper_grpc.wire.flags import variant_of
from gatekeeper_grpc.wire.watch import watch_message

_MAX_WATCHERS = 1_000
_NO_USERS: Mapping[str, bool] = MappingProxyType({})


def serve(
    flags: Mapping[str, bool] | Iterable[FlagConfig] = (), segments: Iterable[SegmentConfig] = ()
) -> "EvaluationServer":
    """Serve flags until `close`, or until the end of a `with` block.

    Args:
        flags: Either the value of each flag for everybody, by its key, or whole flags.
        segments: The segments that flags may name, with their conditions.

    Raises:
        InvalidArgument: A key is malformed.
        NotFound: A flag names a segment that is not in `segments`.
    """
    server = EvaluationServer(segments)
    try:
        for flag, value in flags.items() if isinstance(flags, Mapping) else ((flag, False) for flag in flags):
            server.set_flag(flag, value=value)
    except BaseException:
        server.close()
        raise
    return server


class EvaluationServer:
    """EvaluationService on a free port: EvaluateFlags, BulkEvaluateFlags, WatchFlags. Made by `serve`; thread-safe."""

    def __init__(self, segments: Iterable[SegmentConfig]) -> None:
        self._lock = threading.Lock()  # orders publications
        self._watchers = WatcherHub(ChangeHistory(), watch_message, capacity=_MAX_WATCHERS)
        self._cache = SnapshotCache(stale_after_s=math.inf, max_waiters=1, published=self._watchers.published)
        self._publish(Snapshot.build(revision=1, segments=map(_segment, count(1), segments)))
        self._pools = CallPools()
        stages = Stages(verify_token=refuse_token, pools=self._pools)
        self._server = new_server(self._pools[PoolName.OPERATIONS], stages)
        add_EvaluationServiceServicer_to_server(EvaluationServicer(self._cache, self._watchers), self._server)
        self.address = f"127.0.0.1:{bind(self._server, ListenAddress(host='127.0.0.1'))}"
        """Where it listens, as `grpc.insecure_channel` takes it."""
        self._watchers.start()
        self._server.start()

    def set_flag(self, flag: str | FlagConfig, *, value: bool = False, users: Mapping[str, bool] = _NO_USERS) -> int:
        """Create or replace a flag, tell watchers, and return the revision at which calls are answered from now on.

        Args:
            flag: The key of a flag that has `value` for everybody, or a whole flag, which `value` does not change.
            value: The value for everybody.
            users: Individual targets: the value for each user, by id.

        Raises:
            InvalidArgument: The key is malformed.
            NotFound: The flag names a segment that was not given to `serve`.
        """
        if isinstance(flag, str):
            flag = FlagConfig(key=flag, enabled=True, default_variant=variant_of(value=value))
        now = datetime.now(UTC)
        with self._lock:
            before = self._cache.current()
            for target in flag.segment_targets:
                if target.segment_key not in before.segments:
                    raise NotFound.segment(target.segment_key)
            revision = before.revision + 1  # also the id: a flag that is replaced leaves its targets behind
            stored = Flag(flag_id=revision, config=flag, create_time=now, update_time=now, revision=revision)
            targets = [UserEntry(user, revision, VARIANTS.index(variant_of(value=on))) for user, on in users.items()]
            after = before.after(SnapshotDelta(revision=revision, flags={flag.key: stored}, targets=targets))
            change = ChangeType.UPDATED if flag.key in before.flags else ChangeType.CREATED
            changes = FlagChanges(since=before.revision, changes=(FlagChange(revision, flag.key, change),))
            self._publish(replace(after, changes=changes))
            return revision

    def close(self) -> None:
        """End all calls and stop."""
        self._watchers.close()
        self._server.stop(None).wait()
        self._pools.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _publish(self, snapshot: Snapshot) -> None:
        self._cache.publish(snapshot, confirmed_at=math.inf)
        # There is nothing newer anywhere: a `min_revision` above this is refused at once.
        self._cache.note_head(snapshot.revision, read_at=math.inf)


def _segment(segment_id: int, config: SegmentConfig) -> Segment:
    now = datetime.now(UTC)
    return Segment(segment_id=segment_id, config=config, create_time=now, update_time=now, revision=1)
