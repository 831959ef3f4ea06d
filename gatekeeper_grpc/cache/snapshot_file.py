"""A file as a storage of the last-known-good snapshot: replaced atomically, shared by the workers of one machine."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gatekeeper_grpc.cache.snapshot_format import SnapshotRefused
from gatekeeper_grpc.cache.snapshot_storage import MAX_SNAPSHOT_BYTES
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.durable_file import draft_of, replace_file


class SnapshotFile:
    """A file that only its owner can read. A failure names the file: `Unavailable` or `SnapshotRefused`."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_name(f".{path.name}.lock")

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the write lock inside the block; the block gets False when another process holds it."""
        with self._failures():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            is_ours = _is_locked_now(descriptor)
            if is_ours:
                # A writer that was killed left this. It may hold data that has been erased since.
                with self._failures():
                    draft_of(self._path).unlink(missing_ok=True)
            yield is_ours
        finally:
            os.close(descriptor)  # which releases the lock, as the end of the process does

    def read(self, size: int | None = None) -> bytes:
        """Return the snapshot, or the first `size` bytes of it; none when there is no file.

        Raises:
            SnapshotRefused: The file is larger than a snapshot can be.
            Unavailable: The file cannot be read.
        """
        with self._failures():
            try:
                with self._path.open("rb") as file:
                    if size is None:
                        _check_size(os.fstat(file.fileno()).st_size)
                    return file.read(size)
            except FileNotFoundError:
                return b""

    def write(self, pieces: Iterable[bytes]) -> None:
        """Replace the content by `pieces`, atomically and durably. After a failure the old content is still there.

        Raises:
            Unavailable: The file cannot be written, or would be larger than a snapshot can be.
        """
        with self._failures():
            replace_file(self._path, _bounded(pieces))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise Unavailable(f"{self._path}: {exc.strerror or exc}", retry_after_s=1.0) from exc
        except SnapshotRefused as exc:
            raise SnapshotRefused(f"{self._path}: {exc}") from exc


def _is_locked_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _check_size(size: int) -> None:
    if size > MAX_SNAPSHOT_BYTES:
        raise SnapshotRefused(
            f"it has {size:,} bytes, and no snapshot has more than {MAX_SNAPSHOT_BYTES:,}: it has grown by mistake, and"
            " is replaced as soon as the database is available"
        )


def _bounded(pieces: Iterable[bytes]) -> Iterator[bytes]:
    written = 0
    for piece in pieces:
        written += len(piece)
        if written > MAX_SNAPSHOT_BYTES:
            raise Unavailable(f"the snapshot has more than {MAX_SNAPSHOT_BYTES:,} bytes: it is too large to be kept")
        yield piece
