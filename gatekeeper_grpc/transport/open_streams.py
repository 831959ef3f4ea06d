"""The open response streams that keep no worker, such as WatchFlags: what ends them although their client goes on."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from gatekeeper_grpc.domain.errors import Unauthenticated
from gatekeeper_grpc.transport.deadlines import DeadlineGroup, Deadlines
from gatekeeper_grpc.transport.grpcio_internals import GrpcResponseStream
from gatekeeper_grpc.transport.stream_life import too_old

# So that those that were opened together do not come back together.
_SPREAD = 0.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenStream:
    """One stream, from `OpenStreams.add` to `OpenStreams.remove`."""

    stream: GrpcResponseStream
    key_id: str | None
    """The client key of the call."""
    max_age_s: float


class OpenStreams:
    """Ends each stream at its greatest age, and the streams of a client key that is no longer valid. Thread-safe."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._ages: DeadlineGroup[OpenStream] = deadlines.group("stream_age", _end_old)
        self._lock = threading.Lock()  # guards _by_key
        self._by_key: dict[str, set[OpenStream]] = {}

    def __len__(self) -> int:
        """Count the streams."""
        return len(self._ages)

    def add(self, stream: GrpcResponseStream, *, max_age_s: float, key_id: str | None) -> OpenStream:
        """End `stream` when it is about `max_age_s` old, give or take a fifth; sooner if its key is revoked."""
        spread = random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311 - no secret
        opened = OpenStream(stream=stream, key_id=key_id, max_age_s=max_age_s * spread)
        if key_id is not None:
            with self._lock:
                self._by_key.setdefault(key_id, set()).add(opened)
        self._ages.add(opened, within_s=opened.max_age_s)
        return opened

    def remove(self, opened: OpenStream) -> None:
        """Forget a stream that has ended."""
        self._ages.remove(opened)
        if opened.key_id is None:
            return
        with self._lock:
            streams = self._by_key.get(opened.key_id, set())
            streams.discard(opened)
            if not streams:
                self._by_key.pop(opened.key_id, None)

    def end_of_keys(self, is_valid: Callable[[str], bool]) -> None:
        """End the streams whose key is not valid any more."""
        with self._lock:
            ended = [opened for key, streams in self._by_key.items() if not is_valid(key) for opened in streams]
        for opened in ended:
            opened.stream.end(Unauthenticated.client())


def _end_old(opened: OpenStream) -> None:
    opened.stream.end(too_old(opened.max_age_s))
