"""Snapshots to serve and to store, and a storage in memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.cache.snapshot_format import (
    HEADER_BYTES,
    SnapshotHeader,
    decode,
    decode_header,
    encode,
)
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot, SnapshotDelta
from tests.support.clocks import Clock
from tests.support.servers import KEYS

HERE, ELSEWHERE = UUID(int=1), UUID(int=2)
NOW = datetime.now(UTC)


def whole(revision: int, installation_id: UUID = HERE) -> Snapshot:
    return Snapshot.build(installation_id=installation_id, revision=revision)


def changed(snapshot: Snapshot, revision: int) -> Snapshot:
    return snapshot.after(SnapshotDelta(revision=revision))


def stored(snapshot: Snapshot, *, minutes_ago: float = 0.0, keys: DataKeys = KEYS.data) -> bytes:
    header = SnapshotHeader.of(snapshot, confirmed_time=NOW - timedelta(minutes=minutes_ago))
    return b"".join(encode(snapshot, header, keys))


class MemoryStorage:
    """A storage in memory. Each write takes one second of the clock; it can be made to fail."""

    def __init__(self, clock: Clock, name: str = "memory") -> None:
        self.name = name
        self.content = b""
        self.writes = 0
        self.error: str = ""
        self.is_locked_elsewhere = False
        self._clock = clock

    @contextmanager
    def locked(self) -> Iterator[bool]:
        self._fail_if_told()
        yield not self.is_locked_elsewhere

    def read(self, size: int | None = None) -> bytes:
        self._fail_if_told()
        return self.content[:size]

    def write(self, pieces: Iterable[bytes]) -> None:
        self._clock.advance(1.0)
        self.content = b"".join(pieces)
        self.writes += 1

    def header(self) -> SnapshotHeader:
        return decode_header(self.content[:HEADER_BYTES], KEYS.data)

    def _fail_if_told(self) -> None:
        if self.error:
            raise Unavailable(self.error)


NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def written(snapshot: Snapshot, keys: DataKeys = KEYS.data) -> bytes:
    return b"".join(encode(snapshot, SnapshotHeader.of(snapshot, confirmed_time=NOON), keys))


def read(kept: bytes, keys: DataKeys = KEYS.data) -> Snapshot:
    _, snapshot = decode(kept, keys)
    return snapshot
