"""The threads that keep the snapshot current: on request, on announcement, by poll, and whole on a timer."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import structlog

from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.errors import HistoryLost, Unavailable
from gatekeeper_grpc.domain.revision import epoch_of
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.scheduler import RepeatingThread

_log = structlog.get_logger(__name__)

_WRITE_VISIBLE_TIMEOUT_S = 2.0
_RECONNECT_S = 0.5
# How often to look at the head when nobody asks: never, as the poll does.
_IDLE_S = 3_600.0
_CATCH_UP_ATTEMPTS = 10
# A refresh that fails for longer must not keep the reload from being published.
_DELTAS_FIRST_TIMEOUT_S = 5.0
# How long `close` may have to wait for a listening thread, which nothing wakes but an announcement.
_LISTEN_AT_MOST_S = 0.25


class Spare(Protocol):
    """Where snapshots come from that may be old."""

    def load(self) -> Snapshot:
        """Load everything."""
        ...

    def load_since(self, base: Snapshot) -> Snapshot:
        """Load what changed since `base`; `base` itself when nothing did."""
        ...


class SnapshotSource(Spare, Protocol):
    """Where snapshots come from: what it says is the newest, is."""

    def load(self, *, sharing: Snapshot | None = None) -> Snapshot:
        """Load everything; what is as it is in `sharing` may be taken from there."""
        ...

    def head(self) -> int:
        """Read the newest revision, and nothing else."""
        ...

    def newest_of(self, epoch: int) -> int | None:
        """Read the newest revision of an epoch that is not lost; None when nothing is known of that epoch any more."""
        ...


class Announcements(Protocol):
    """Where new revisions are announced."""

    @property
    def name(self) -> str:
        """Tells one such place from another in the log, such as "postgresql"."""
        ...

    def listening(self) -> AbstractContextManager[Callable[[float], list[int]]]:
        """Listen; inside, the function waits so many seconds for announced revisions."""
        ...


class Refresher:
    """Keeps a `SnapshotCache` current with a few threads, from `start` to `close`.

    One loads what changed, whenever it is asked to and at least every `poll_interval_s`. One for each of
    `announcements` listens, and asks the first to when another instance announces a revision. One loads everything
    every `reload_interval_s`, in case change log and tables ever disagree; it never holds up the first, and what it
    loaded is brought up to date before it is published.

    One reads the newest revision for whoever insists on one, so that what does not exist is refused even while a long
    load is on its way.

    `report_loss` is called with a revision that was served, and the hash of its audit entry where that is known, when
    the database seems to be without it: after a restore, or a failover that lost commits, it must move the database to
    a later revision. While `source` is away `spare` is asked; what that has is served if it is newer, and confirms and
    proves nothing.
    """

    def __init__(
        self,
        cache: SnapshotCache,
        source: SnapshotSource,
        announcements: Sequence[Announcements],
        *,
        report_loss: Callable[[int, bytes], object],
        spare: Spare | None = None,
        poll_interval_s: float,
        reload_interval_s: float,
    ) -> None:
        self._cache = cache
        self._source = source
        self._spare = spare
        self._report_loss = report_loss
        self._refreshing = RepeatingThread(
            "refresh", self._refresh, interval_s=poll_interval_s, wait=cache.wait_for_request
        )
        listening = [
            RepeatingThread(f"listen_{source.name}", partial(self._listen, source), interval_s=_RECONNECT_S)
            for source in announcements
        ]
        self._reloading = RepeatingThread("reload", self._reload, interval_s=reload_interval_s)
        self._looking = RepeatingThread("head", self._look, interval_s=_IDLE_S, wait=cache.wait_for_head_request)
        self._threads = (self._refreshing, *listening, self._reloading, self._looking)

    def start(self) -> None:
        """Start the threads; the first snapshot is there soon after, if the database is."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads and wait for them, bounded."""
        for thread in self._threads:
            thread.stop()
        self._cache.request_refresh()
        self._cache.request_head()
        for thread in self._threads:
            thread.close()

    def refresh_after_write(self, revision: int) -> None:
        """Wait until the cache shows a durable write.

        Taking over 2 s is logged and never fails the write: the refresh goes on being tried.
        """
        if not self._cache.wait_for_revision(revision, timeout_s=_WRITE_VISIBLE_TIMEOUT_S):
            _log.warning("write_not_visible_yet", revision=revision)

    def _look(self) -> None:
        read_at = time.monotonic()
        self._cache.note_head(self._source.head(), read_at=read_at)

    def expect(self, revision: int) -> None:
        """Look for a revision that some instance has served; report it as lost when the database has it not.

        Errors: `Unavailable` when that cannot be found out.
        """
        if not self._cache.wait_for_revision(revision, timeout_s=_WRITE_VISIBLE_TIMEOUT_S):
            self._report_loss(revision, b"")
            self._cache.request_refresh()

    def _refresh(self) -> None:
        base = self._cache.peek()
        try:
            self._refresh_from_source(base)
        except Unavailable:
            if self._spare is not None:
                self._refresh_from_spare(self._spare, base)
            raise

    def _refresh_from_source(self, base: Snapshot | None) -> None:
        if base is None:
            self._publish(self._source.load)
            _log.info("snapshot_loaded", **_summary(self._cache.current()))
        elif not self._publish_since(base):
            # Overtaken by a reload, or the database has lost commits.
            self._report_loss(base.revision, base.audit_hash)
            self._publish(lambda: self._source.load_since(self._cache.current()))

    def _publish_since(self, base: Snapshot) -> bool:
        """Publish what changed since; False when the database does not have, or seems not to have, what is served."""
        try:
            return self._publish(lambda: self._source.load_since(base), instead_of=base)
        except HistoryLost:
            _log.error("history_lost", last_served_revision=base.revision)
            return False

    def _refresh_from_spare(self, spare: Spare, base: Snapshot | None) -> None:
        snapshot = spare.load() if base is None else spare.load_since(base)
        if base is None or _continues(base, snapshot):
            self._cache.publish(snapshot, confirmed_at=-math.inf, instead_of=base)
            _log.warning("snapshot_from_replica", **_summary(snapshot))

    def _reload(self) -> None:
        if self._cache.peek() is None:
            return
        # Nearly all of it is as it was: shared, it neither takes memory twice nor sets off the garbage collector, which
        # holds up every other thread while it looks at everything there is.
        snapshot = self._source.load(sharing=self._cache.peek())
        # What watchers are told comes with deltas. Published before them, this would leave a gap in what watchers know.
        self._cache.wait_for_revision(snapshot.revision, timeout_s=_DELTAS_FIRST_TIMEOUT_S)
        # Writes went on meanwhile, and go on: what is published must not be older than what is served. A database that
        # was set back stays older, so this ends.
        if not any(self._publish(lambda: self._source.load_since(snapshot)) for _ in range(_CATCH_UP_ATTEMPTS)):
            _log.warning("reload_not_published", revision=snapshot.revision)

    def _publish(self, load: Callable[[], Snapshot], *, instead_of: Snapshot | None = None) -> bool:
        """Load and publish; False when what is served is newer, or was put `instead_of` what the delta is of."""
        asked_at, before = time.monotonic(), self._cache.peek()
        snapshot = load()
        published = self._cache.publish(snapshot, confirmed_at=asked_at, instead_of=instead_of)
        if published and before and _is_past_a_loss(before, snapshot):
            self._tell_loss(before, snapshot)
        return published

    def _tell_loss(self, before: Snapshot, now: Snapshot) -> None:
        """Say what is lost of what this instance has served."""
        kept = self._newest_kept(epoch_of(before.revision))
        fields = {"last_served_revision": before.revision, "newest_kept_revision": kept, **_summary(now)}
        if kept is not None and kept >= before.revision:
            _log.warning("epoch_begun_without_loss_here", **fields)
        else:
            lost_from = None if kept is None else kept + 1
            _log.error("commits_lost", lost_from_revision=lost_from, lost_to_revision=before.revision, **fields)

    def _newest_kept(self, epoch: int) -> int | None:
        try:
            return self._source.newest_of(epoch)
        except Unavailable:  # That something is lost is to be said in any case.
            return None

    def _listen(self, source: Announcements) -> None:
        with source.listening() as wait:
            _log.info("listening", bus=source.name)
            # What was announced before we listened, we have to look for.
            self._cache.request_refresh()
            while not self._refreshing.is_stopping:
                self._heed(wait(_LISTEN_AT_MOST_S))

    def _heed(self, announced: Sequence[int]) -> None:
        """Ask for a refresh, unless what was announced is served already, as our own writes are."""
        serving = self._cache.peek()
        if announced and (serving is None or max(announced) > serving.revision):
            self._cache.request_refresh()


def _is_past_a_loss(before: Snapshot, now: Snapshot) -> bool:
    """Tell whether one installation has begun a new epoch; revisions of another one say nothing about this one's."""
    return before.installation_id == now.installation_id and epoch_of(before.revision) != epoch_of(now.revision)


def _continues(base: Snapshot, snapshot: Snapshot) -> bool:
    """Tell whether a snapshot that nobody confirms is newer than another, of the same history."""
    is_same_history = base.installation_id == snapshot.installation_id and epoch_of(base.revision) == epoch_of(
        snapshot.revision
    )
    return is_same_history and snapshot.revision > base.revision


def _summary(snapshot: Snapshot) -> dict[str, int]:
    return {"revision": snapshot.revision, "flags": len(snapshot.flags), "targets": len(snapshot.targets)}
