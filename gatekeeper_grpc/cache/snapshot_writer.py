"""Writes the current snapshot to a storage that outlives the process, for a start without a database."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta

import structlog

from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.snapshot_format import (
    HEADER_BYTES,
    NotASnapshot,
    SnapshotHeader,
    SnapshotRefused,
    check_preamble,
    check_whole,
    decode_header,
    encode,
)
from gatekeeper_grpc.cache.snapshot_storage import SnapshotStorage
from gatekeeper_grpc.domain.errors import GatekeeperError, Unavailable
from gatekeeper_grpc.domain.sealer import Sealer
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.scheduler import Scheduler, Task

_log = structlog.get_logger(__name__)

_CHECK_EVERY_S = 0.25
# After a write of one second, nine seconds of rest.
_REST_PER_WORK = 9.0
_RETRY_S = 1.0
# The header says when the database last confirmed the snapshot, and a storage may have lost its content.
_RENEW_AFTER = timedelta(hours=1)
# The writer rests between two pieces for as long as the piece took: evaluation gets the interpreter half of the time.
_PAUSE_AT_LEAST_S = 0.001


class SnapshotWriter:
    """Keeps the current snapshot in one storage, from `start` to `close`.

    A change after a quiet time is written at once. While changes continue, at most a tenth of the time is spent on
    writing. A snapshot that was loaded whole is always written at once: a person may have been erased, and the stored
    copy must not hold their data any longer. Of several instances that share a storage, the first to hold its lock
    writes; the newest revision wins. A failing storage is logged once and tried again every second.

    `on_newer` is called with the revision of a stored snapshot that is newer than ours: another instance is ahead, or
    the database has lost what it once confirmed.
    """

    def __init__(
        self,
        cache: SnapshotCache,
        storage: SnapshotStorage,
        sealer: Sealer,
        *,
        on_newer: Callable[[int], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._cache = cache
        self._storage = storage
        self._sealer = sealer
        self._on_newer = on_newer
        self._clock = clock
        self._pause = pause
        self._written: SnapshotHeader | None = None
        self._rested_at = -math.inf
        self._retry_at = -math.inf
        self.has_failed = False
        """Whether the last attempt to write failed."""
        self._task: Task | None = None

    @property
    def storage(self) -> str:
        """The name of the storage."""
        return self._storage.name

    def start(self, scheduler: Scheduler) -> None:
        """Write from now on."""
        name = f"write_{self._storage.name}"
        self._task = scheduler.add(
            name, self.write_if_due, interval_s=_CHECK_EVERY_S, blocks=True, is_due=lambda: self._due() is not None
        )

    def close(self) -> None:
        """Stop, and write the current snapshot if it is not stored yet: a later start may find no database."""
        self._pause = lambda _: None  # Evaluation has ended.
        if self._task:
            self._task.close()
        self._rested_at = -math.inf
        self.write_if_due()

    def write_if_due(self) -> None:
        """Write the current snapshot, if it is time."""
        due = self._due()
        if due is None:
            return
        snapshot, header = due
        try:
            stored = self._write_unless_stored(snapshot, header)
        except GatekeeperError as exc:
            self._retry_at = self._clock() + _RETRY_S
            self._report(exc)
            return
        self._report(None)
        if stored is not None:
            if stored.revision > header.revision:
                self._on_newer(stored.revision)
            self._written = header

    def _due(self) -> tuple[Snapshot, SnapshotHeader] | None:
        """Return the current snapshot and its header if they should be written now. Does not block."""
        snapshot, unconfirmed_s = self._cache.peek(), self._cache.unconfirmed_s()
        # An unconfirmed snapshot came from such a storage, or from a replica that may be behind.
        if snapshot is None or math.isinf(unconfirmed_s):
            return None
        header = SnapshotHeader.of(snapshot, confirmed_time=datetime.now(UTC) - timedelta(seconds=unconfirmed_s))
        return (snapshot, header) if self._is_due(header) else None

    def _is_due(self, header: SnapshotHeader) -> bool:
        now, written = self._clock(), self._written
        if now < self._retry_at:
            return False
        if written is None or (header.installation_id, header.whole_at) != (written.installation_id, written.whole_at):
            return True
        return (header.revision != written.revision and now >= self._rested_at) or _needs_renewal(written, header)

    def _write_unless_stored(self, snapshot: Snapshot, header: SnapshotHeader) -> SnapshotHeader | None:
        """Write unless the stored snapshot is as good; return what is stored, None while another has the lock."""
        with self._storage.locked() as is_ours:
            if not is_ours:
                return None
            stored = self._stored_header()
            if stored is not None and not _supersedes(header, stored):
                return stored
            self._write(snapshot, header)
            return header

    def _stored_header(self) -> SnapshotHeader | None:
        """Read the stored header; None when the storage is empty or its content is unusable.

        Raises:
            Unavailable: the storage holds something that Gatekeeper did not write.
        """
        try:
            return self._checked_header()
        except NotASnapshot as exc:
            raise Unavailable(f"{self._storage.name}: {exc}") from exc
        except SnapshotRefused as exc:
            _log.warning("last_known_good_replaced", storage=self._storage.name, error=str(exc))
            return None

    def _checked_header(self) -> SnapshotHeader | None:
        """Read the header; the first time everything, which may have been damaged since it was written."""
        beginning = self._storage.read(HEADER_BYTES)
        if not beginning:
            return None
        check_preamble(beginning)  # First: what Gatekeeper did not write is left alone, however large it is.
        if not self._written:
            check_whole(self._storage.read())
        return decode_header(beginning, self._sealer)

    def _write(self, snapshot: Snapshot, header: SnapshotHeader) -> None:
        began = self._clock()
        self._storage.write(self._throttled(encode(snapshot, header, self._sealer)))
        took_s = self._clock() - began
        self._rested_at = self._clock() + took_s * _REST_PER_WORK
        _log.debug(
            "snapshot_written", storage=self._storage.name, revision=header.revision, took_ms=round(took_s * 1000)
        )

    def _throttled(self, pieces: Iterator[bytes]) -> Iterable[bytes]:
        began = self._clock()
        for piece in pieces:
            yield piece
            self._pause(max(_PAUSE_AT_LEAST_S, self._clock() - began))
            began = self._clock()

    def _report(self, error: GatekeeperError | None) -> None:
        """Log when the storage begins to fail, and when it works again."""
        if error is not None and not self.has_failed:
            _log.warning("snapshot_write_failed", storage=self._storage.name, error=str(error))
        if error is None and self.has_failed:
            _log.info("snapshot_write_recovered", storage=self._storage.name)
        self.has_failed = error is not None


def _supersedes(header: SnapshotHeader, stored: SnapshotHeader) -> bool:
    """Tell whether a snapshot must replace the stored one."""
    if header.installation_id != stored.installation_id or header.revision != stored.revision:
        return header.installation_id != stored.installation_id or header.revision > stored.revision
    return _needs_renewal(stored, header)


def _needs_renewal(stored: SnapshotHeader, header: SnapshotHeader) -> bool:
    return header.confirmed_time - stored.confirmed_time > _RENEW_AFTER
