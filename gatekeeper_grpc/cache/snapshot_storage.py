"""Where the last-known-good snapshot can be kept. Implemented by `SnapshotFile` and `RedisSnapshotStorage`."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Final, Protocol

MAX_SNAPSHOT_BYTES: Final = 1 << 30
"""The largest snapshot that is kept: some 37 million targets. A larger file has grown by mistake, and is not read."""


class SnapshotStorage(Protocol):
    """Keeps one snapshot. Every failure is a `GatekeeperError` that names the storage and shows no secret."""

    @property
    def name(self) -> str:
        """Distinguishes this storage from others, such as "file"."""
        ...

    def locked(self) -> AbstractContextManager[bool]:
        """Hold the write lock inside the block; the block gets False when another writer holds it."""
        ...

    def read(self, size: int | None = None) -> bytes:
        """Return the snapshot, or the first `size` bytes of it; none when the storage is empty."""
        ...

    def write(self, pieces: Iterable[bytes]) -> None:
        """Replace the content by `pieces` atomically. After a failure the old content is still there."""
        ...
