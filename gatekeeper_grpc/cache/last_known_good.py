"""Keeps the last-known-good snapshot where it outlives the process, for a start without a database."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cmp_to_key
from typing import Protocol
from uuid import UUID

import structlog

from gatekeeper_grpc.cache.snapshot_format import (
    HEAD_BYTES,
    NotASnapshot,
    Sealer,
    SnapshotHeader,
    SnapshotRefused,
    check_whole,
    decode,
    encode,
    read_stamp,
)
from gatekeeper_grpc.domain.errors import GatekeeperError, Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.periodic import Periodic

_log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.25
# After a write of one second, nine seconds of rest.
_REST_PER_WORK = 9.0
_RETRY_S = 1.0
# What is kept says when it was last confirmed, and a place may have lost it.
_RENEW_AFTER = timedelta(hours=1)
# Between two pieces: as long as the piece took, so that evaluation gets the interpreter for at least half of the time.
_PAUSE_AT_LEAST_S = 0.001


class SnapshotStorage(Protocol):
    """Where one snapshot can be kept. What fails is a `GatekeeperError` that names the place, and no secret."""

    @property
    def name(self) -> str:
        """Tells one place from another, such as "file"."""
        ...

    def claimed(self) -> AbstractContextManager[bool]:
        """Be the only one to write for the length of a block; False in it when somebody else is."""
        ...

    def head(self, size: int) -> bytes:
        """Return the first bytes, at most `size`; none when nothing is kept."""
        ...

    def read(self) -> bytes:
        """Return all of it; nothing when nothing is kept."""
        ...

    def write(self, pieces: Iterable[bytes]) -> None:
        """Put `pieces` in the place of what was there: whole, or not at all."""
        ...


class Current(Protocol):
    """What is served."""

    def peek(self) -> Snapshot | None:
        """Return the current snapshot, or None before the first one."""
        ...

    def unconfirmed_s(self) -> float:
        """Return for how many seconds the database has not confirmed the current snapshot; infinity: never yet."""
        ...


class SnapshotKeeper:
    """Keeps the current snapshot in one place, from `start` to `close`, in a thread of its own.

    A change is written at once after some quiet; while changes go on, at most a tenth of the time is spent writing. Not
    so for a snapshot that was loaded whole: a person may have been erased, and what is kept must not know them any
    longer. Of several instances that share a place, whoever is first writes; the newest revision wins. A place that
    fails is reported once, tried again every second, and harms nothing.

    `heed_newer` is called with the revision of a snapshot that is kept and newer than ours: another instance is ahead,
    or the database has lost what it once confirmed.
    """

    def __init__(
        self,
        cache: Current,
        place: SnapshotStorage,
        sealer: Sealer,
        *,
        heed_newer: Callable[[int], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._cache = cache
        self._place = place
        self._sealer = sealer
        self._heed_newer = heed_newer
        self._clock = clock
        self._pause = pause
        self._kept: SnapshotHeader | None = None
        self._rested_at = -math.inf
        self._retry_at = -math.inf
        self._has_failed = False
        self._keeping = Periodic(f"keep_{place.name}", self.look, interval_s=_LOOK_EVERY_S)

    @property
    def place(self) -> str:
        """The name of the place."""
        return self._place.name

    @property
    def has_failed(self) -> bool:
        """Whether the place could not be written when last tried."""
        return self._has_failed

    def start(self) -> None:
        """Start the thread."""
        self._keeping.start()

    def close(self) -> None:
        """Stop, and write what is not written yet: a later start may find no database."""
        self._pause = lambda _: None  # Nobody evaluates any more.
        self._keeping.close()
        self._rested_at = -math.inf
        self.look()

    def look(self) -> None:
        """Write the current snapshot, if it is time."""
        snapshot, unconfirmed_s = self._cache.peek(), self._cache.unconfirmed_s()
        # Good is what the database has said. What was read from such a place is there already.
        if snapshot is None or math.isinf(unconfirmed_s):
            return
        stamp = SnapshotHeader.of(snapshot, confirmed_time=datetime.now(UTC) - timedelta(seconds=unconfirmed_s))
        if not self._is_time(stamp):
            return
        try:
            there = self._keep(snapshot, stamp)
        except GatekeeperError as exc:
            self._retry_at = self._clock() + _RETRY_S
            self._report(exc)
            return
        self._report(None)
        if there is not None:
            if there.revision > stamp.revision:
                self._heed_newer(there.revision)
            self._kept = stamp

    def _is_time(self, stamp: SnapshotHeader) -> bool:
        now, kept = self._clock(), self._kept
        if now < self._retry_at:
            return False
        if kept is None or (stamp.installation_id, stamp.whole_at) != (kept.installation_id, kept.whole_at):
            return True
        return (stamp.revision != kept.revision and now >= self._rested_at) or _is_to_be_renewed(kept, stamp)

    def _keep(self, snapshot: Snapshot, stamp: SnapshotHeader) -> SnapshotHeader | None:
        """Write unless something as good is there; return what is there then, None when somebody else is writing."""
        with self._place.claimed() as is_ours:
            if not is_ours:
                return None
            there = self._there()
            if there is not None and not _supersedes(stamp, there):
                return there
            self._write(snapshot, stamp)
            return stamp

    def _there(self) -> SnapshotHeader | None:
        """Return what is kept, by whomever; None when it is nothing, or of no use."""
        try:
            return self._checked_stamp()
        except NotASnapshot as exc:
            raise Unavailable(f"{self._place.name}: {exc}") from exc
        except SnapshotRefused as exc:
            _log.warning("last_known_good_replaced", place=self._place.name, error=str(exc))
            return None

    def _checked_stamp(self) -> SnapshotHeader | None:
        """Read the stamp; the first time all the rest as well, which may have been damaged since it was written."""
        kept = self._place.head(HEAD_BYTES) if self._kept else self._place.read()
        if not kept:
            return None
        if not self._kept:
            check_whole(kept)
        return read_stamp(kept[:HEAD_BYTES], self._sealer)

    def _write(self, snapshot: Snapshot, stamp: SnapshotHeader) -> None:
        began = self._clock()
        self._place.write(self._paced(encode(snapshot, stamp, self._sealer)))
        took_s = self._clock() - began
        self._rested_at = self._clock() + took_s * _REST_PER_WORK
        _log.debug("snapshot_kept", place=self._place.name, revision=stamp.revision, took_ms=round(took_s * 1000))

    def _paced(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        began = self._clock()
        for piece in pieces:
            yield piece
            self._pause(max(_PAUSE_AT_LEAST_S, self._clock() - began))
            began = self._clock()

    def _report(self, error: GatekeeperError | None) -> None:
        """Log when the place begins to fail, and when it works again."""
        if error is not None and not self._has_failed:
            _log.warning("snapshot_not_kept", place=self._place.name, error=str(error))
        if error is None and self._has_failed:
            _log.info("snapshot_kept_again", place=self._place.name)
        self._has_failed = error is not None


def _supersedes(stamp: SnapshotHeader, there: SnapshotHeader) -> bool:
    """Tell whether a snapshot is to take the place of another one."""
    if stamp.installation_id != there.installation_id or stamp.revision != there.revision:
        return stamp.installation_id != there.installation_id or stamp.revision > there.revision
    return _is_to_be_renewed(there, stamp)


def _is_to_be_renewed(kept: SnapshotHeader, stamp: SnapshotHeader) -> bool:
    return stamp.confirmed_time - kept.confirmed_time > _RENEW_AFTER


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSnapshot:
    """A last-known-good snapshot, where it was found, and what it is."""

    snapshot: Snapshot
    place: str
    stamp: SnapshotHeader


def newest_kept(places: Iterable[SnapshotStorage], sealer: Sealer) -> KeptSnapshot | None:
    """Find the newest usable snapshot; None when there is none. What cannot be used is logged, each with the reason."""
    stamped = [(stamp, place) for place in places if (stamp := _stamp_in(place, sealer))]
    newest_first = sorted(stamped, key=cmp_to_key(_newest_first))
    return next((kept for _, place in newest_first if (kept := _read(place, sealer))), None)


def newest_revision(places: Iterable[SnapshotStorage], sealer: Sealer, *, installation_id: UUID) -> int:
    """Return the newest revision of an installation that is kept anywhere; 0 when none is, or none can be read."""
    stamps = [_readable_stamp(place, sealer) for place in places]
    return max((stamp.revision for stamp in stamps if stamp and stamp.installation_id == installation_id), default=0)


def _readable_stamp(place: SnapshotStorage, sealer: Sealer) -> SnapshotHeader | None:
    try:
        return read_stamp(place.head(HEAD_BYTES), sealer)
    except (SnapshotRefused, GatekeeperError):  # Told by whoever needs more of it.
        return None


def _newest_first(left: tuple[SnapshotHeader, SnapshotStorage], right: tuple[SnapshotHeader, SnapshotStorage]) -> int:
    return right[0].is_newer_than(left[0]) - left[0].is_newer_than(right[0])


def _stamp_in(place: SnapshotStorage, sealer: Sealer) -> SnapshotHeader | None:
    try:
        head = place.head(HEAD_BYTES)
        return read_stamp(head, sealer) if head else None
    except (SnapshotRefused, GatekeeperError) as exc:
        _log.error("last_known_good_refused", place=place.name, error=str(exc))
        return None


def _read(place: SnapshotStorage, sealer: Sealer) -> KeptSnapshot | None:
    try:
        stamp, snapshot = decode(place.read(), sealer)
    except (SnapshotRefused, GatekeeperError) as exc:
        _log.error("last_known_good_refused", place=place.name, error=str(exc))
        return None
    return KeptSnapshot(snapshot=snapshot, place=place.name, stamp=stamp)
