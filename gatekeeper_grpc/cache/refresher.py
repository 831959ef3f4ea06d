"""Keeps the snapshot current: refreshes on request, on announcement and by poll, and reloads everything on a timer."""

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
from gatekeeper_grpc.instrumentation.counters import PROPAGATION, REFRESH_DURATION
from gatekeeper_grpc.instrumentation.spans import TRACES, collected
from gatekeeper_grpc.scheduler import OnDemandThread, RepeatingThread

_log = structlog.get_logger(__name__)

# How long a revision that was served elsewhere may take to be found before it is reported as lost.
_FOUND_WITHIN_S = 2.0
# After a write: how often its refresh is requested again, and for how long refreshes may fail before the call fails.
_RETRY_REFRESH_S = 0.25
_REFRESH_MAY_FAIL_S = 2.0
_RECONNECT_S = 0.5
_CATCH_UP_ATTEMPTS = 10
# A refresh that fails for longer must not keep the reload from being published.
_DELTAS_FIRST_TIMEOUT_S = 5.0
# A listening thread waits until something is announced or `wake` is called.
_LISTEN_AT_MOST_S = 3_600.0


class FallbackSource(Protocol):
    """Where snapshots come from that may be old."""

    def load(self) -> Snapshot:
        """Load everything."""
        ...

    def load_since(self, base: Snapshot) -> Snapshot:
        """Load what changed since `base`; `base` itself when nothing did."""
        ...


class SnapshotSource(FallbackSource, Protocol):
    """Where the newest snapshots come from."""

    def load(self, *, sharing: Snapshot | None = None) -> Snapshot:
        """Load everything; reuse parts of `sharing` that are unchanged."""
        ...

    def load_since(self, base: Snapshot, *, paced: bool = True) -> Snapshot:
        """Load what changed since `base`; if that means everything, without rests unless `paced`."""
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
        """Distinguishes this bus from others in the log, such as "postgresql"."""
        ...

    def listening(self) -> AbstractContextManager[Callable[[float], list[int]]]:
        """Listen inside the block; its function checks the connection and waits so many seconds for revisions."""
        ...

    def wake(self) -> None:
        """End the current wait, from any thread. Without one, do nothing."""
        ...


class Refresher:
    """Keeps a `SnapshotCache` current, from `start` to `close`.

    The refresh thread loads what changed, whenever it is requested and at least every `poll_interval_s`. One thread for
    each of `announcements` listens, and requests a refresh when another instance announces a revision. Two threads
    exist only while they have work:

    - Every `reload_interval_s` one loads everything, in case change log and tables disagree; and soon after a start
      from a stored snapshot. It never delays the refresh thread, and brings its snapshot up to date before it publishes
      it.
    - When a call needs a revision that is not served, one reads the newest revision. So a revision that does not exist
      is refused even while a long load is under way.

    `report_loss` is called with a served revision, and the hash of its audit entry if known, when the database seems to
    lack it: after a restore, or a failover that lost commits. It must move the database to a later revision. While
    `source` is unavailable, `fallback` is read; its snapshot is served if it is newer, and confirms nothing.
    """

    def __init__(
        self,
        cache: SnapshotCache,
        source: SnapshotSource,
        announcements: Sequence[Announcements],
        *,
        report_loss: Callable[[int, bytes], object],
        fallback: FallbackSource | None = None,
        poll_interval_s: float,
        reload_interval_s: float,
    ) -> None:
        self._cache = cache
        self._source = source
        self._fallback = fallback
        self._report_loss = report_loss
        self._announcements = announcements
        self._reload_interval_s = reload_interval_s
        self._reload_due_at = time.monotonic() + reload_interval_s
        self._failing_since: float | None = None
        self._refreshing = RepeatingThread(
            "refresh", self._refresh, interval_s=poll_interval_s, wait=cache.wait_for_request
        )
        self._listening = [
            RepeatingThread(f"listen_{source.name}", partial(self._listen, source), interval_s=_RECONNECT_S)
            for source in announcements
        ]
        self._reloading = OnDemandThread("reload", self._reload)
        self._reading_head = OnDemandThread("head", self._read_head)
        cache.read_head_with(self._reading_head.request)

    def start(self) -> None:
        """Start the threads. The first snapshot is there soon after, if the database is."""
        for thread in (self._refreshing, *self._listening):
            thread.start()

    def close(self) -> None:
        """Stop the threads and wait for them, bounded."""
        for thread in (self._refreshing, *self._listening):
            thread.stop()
        self._cache.request_refresh()
        self._wake_listeners()
        for thread in (self._refreshing, *self._listening):
            thread.close()
        self._reloading.close()
        self._reading_head.close()

    def refresh_after_write(self, revision: int) -> None:
        """Wait until the cache shows a committed write, however long the refresh takes.

        Raises:
            Unavailable: the write is committed, and this instance cannot show it: all refreshes failed for 2 s, the
                database lost the write in a failover, or this instance is shutting down.
        """
        committed_at = time.monotonic()
        while not self._cache.wait_for_revision(revision, timeout_s=_RETRY_REFRESH_S):
            if obstacle := self._obstacle(revision, committed_at):
                _log.warning("write_not_visible", revision=revision, reason=obstacle)
                raise Unavailable(
                    f"the write is committed at revision {revision}, but not visible here: {obstacle};"
                    " read it again, or repeat the call with the same request_id",
                    metadata={"revision": str(revision)},
                    retry_after_s=1.0,
                )

    def _obstacle(self, revision: int, committed_at: float) -> str | None:
        """Return why a committed revision cannot be shown; None while a refresh can still bring it."""
        now, failing_since = time.monotonic(), self._failing_since
        if self._refreshing.is_stopping:
            return "this instance is shutting down"
        if failing_since is not None and now - max(failing_since, committed_at) > _REFRESH_MAY_FAIL_S:
            return "the database does not answer"
        # Read in this order: what the confirmation belongs to is served by now, or something newer.
        is_confirmed_since = self._cache.unconfirmed_s() < now - committed_at
        if is_confirmed_since and self._cache.current().revision < revision:
            return "the database has lost it"
        return None

    def _read_head(self) -> None:
        read_at = time.monotonic()
        self._cache.note_head(self._source.head(), read_at=read_at)

    def expect(self, revision: int) -> None:
        """Wait for a revision that some instance has served; report it as lost when the database lacks it.

        Raises:
            Unavailable: the database cannot be asked.
        """
        if not self._cache.wait_for_revision(revision, timeout_s=_FOUND_WITHIN_S):
            self._report_loss(revision, b"")
            self._cache.request_refresh()

    def _refresh(self) -> None:
        base, is_confirmed = self._cache.peek(), self._is_confirmed()
        try:
            self._refresh_from_any()
        except Exception:
            if self._failing_since is None:
                self._failing_since = time.monotonic()
            self._wake_listeners()  # Their connections may be dead, too.
            raise
        self._failing_since = None
        if base and not is_confirmed and self._cache.current().whole_at == base.whole_at:
            self._reload_due_at = -math.inf  # An earlier process loaded the whole; this one has seen changes only.
        if time.monotonic() >= self._reload_due_at:
            self._reloading.request()
            self._reload_due_at = time.monotonic() + self._reload_interval_s

    def _is_confirmed(self) -> bool:
        """Whether the database has ever confirmed what is served."""
        return math.isfinite(self._cache.unconfirmed_s())

    def _wake_listeners(self) -> None:
        for source in self._announcements:
            source.wake()

    def _refresh_from_any(self) -> None:
        base = self._cache.peek()
        try:
            self._refresh_from_source(base)
        except Unavailable:
            if self._fallback is not None:
                self._refresh_from_fallback(self._fallback, base)
            raise

    def _refresh_from_source(self, base: Snapshot | None) -> None:
        if base is None:
            self._publish(self._source.load, kind="full")
            _log.info("snapshot_loaded", **_summary(self._cache.current()))
        elif not self._publish_since(base):
            # Overtaken by a reload, or the database has lost commits.
            self._report_loss(base.revision, base.audit_hash)
            self._publish(lambda: self._source.load_since(self._cache.current()))

    def _publish_since(self, base: Snapshot) -> bool:
        """Publish what changed since `base`; False when the database lacks, or seems to lack, the served revision."""
        try:
            # What no database has confirmed is served only for want of a better one: then loading comes first.
            rests = {} if self._is_confirmed() else {"paced": False}
            return self._publish(partial(self._source.load_since, base, **rests), instead_of=base)
        except HistoryLost:
            _log.error("history_lost", last_served_revision=base.revision)
            return False

    def _refresh_from_fallback(self, fallback: FallbackSource, base: Snapshot | None) -> None:
        with REFRESH_DURATION.labels("replica").time():
            snapshot = fallback.load() if base is None else fallback.load_since(base)
        if base is None or _continues(base, snapshot):
            self._cache.publish(snapshot, confirmed_at=-math.inf, instead_of=base)
            _log.warning("snapshot_from_replica", **_summary(snapshot))

    def _reload(self) -> None:
        if self._cache.peek() is None:
            return
        # Nearly everything is unchanged. Shared, it needs no second copy and starts no garbage collection, which would
        # stop every other thread while it visits all objects.
        with REFRESH_DURATION.labels("full").time():
            snapshot = self._source.load(sharing=self._cache.peek())
        # Watchers get their changes from deltas. Published before them, this snapshot would leave a gap in the history.
        self._cache.wait_for_revision(snapshot.revision, timeout_s=_DELTAS_FIRST_TIMEOUT_S)
        # Writes continued during the load: a snapshot older than the served one is not published. A database that was
        # restored to an older state stays older, so this loop ends.
        if not any(self._publish(lambda: self._source.load_since(snapshot)) for _ in range(_CATCH_UP_ATTEMPTS)):
            _log.warning("reload_not_published", revision=snapshot.revision)

    def _publish(
        self, load: Callable[[], Snapshot], *, instead_of: Snapshot | None = None, kind: str = "changes"
    ) -> bool:
        """Load and publish; False when the served snapshot is newer, or has replaced `instead_of`, the delta's base."""
        asked_at, before = time.monotonic(), self._cache.peek()
        with collected("refresh") as note:
            snapshot = load()
        kind = "unchanged" if snapshot is before else kind
        REFRESH_DURATION.labels(kind).observe(time.monotonic() - asked_at)
        published = self._cache.publish(snapshot, confirmed_at=asked_at, instead_of=instead_of)
        if published and before:
            _note_propagation(before, snapshot)
            if note is not None and snapshot.revision > before.revision:
                note.ended_at = time.monotonic()
                note.attributes.update({"gatekeeper.refresh.kind": kind, "gatekeeper.revision": snapshot.revision})
                TRACES.add_effect(note, after=before.revision, upto=snapshot.revision)
            if _is_past_a_loss(before, snapshot):
                self._log_loss(before, snapshot)
        return published

    def _log_loss(self, before: Snapshot, now: Snapshot) -> None:
        """Log which of the revisions that this instance has served are lost."""
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
        except Unavailable:  # The loss is logged in any case.
            return None

    def _listen(self, source: Announcements) -> None:
        with source.listening() as wait:
            _log.info("listening", bus=source.name)
            # To find what was announced before this thread listened.
            self._cache.request_refresh()
            while not self._refreshing.is_stopping:
                self._handle(wait(_LISTEN_AT_MOST_S))

    def _handle(self, announced: Sequence[int]) -> None:
        if announced:
            self._cache.request_refresh(max(announced))


def _note_propagation(before: Snapshot, now: Snapshot) -> None:
    """Time the changes that have just become visible here."""
    served_at = time.monotonic()
    for commit in now.commits:
        if commit.revision > before.revision:
            PROPAGATION.observe(served_at - commit.at)


def _is_past_a_loss(before: Snapshot, now: Snapshot) -> bool:
    """Whether one installation has begun a new epoch. Revisions of different installations are not comparable."""
    return before.installation_id == now.installation_id and epoch_of(before.revision) != epoch_of(now.revision)


def _continues(base: Snapshot, snapshot: Snapshot) -> bool:
    """Whether an unconfirmed snapshot is newer than `base` and of the same history."""
    is_same = base.installation_id == snapshot.installation_id and not _is_past_a_loss(base, snapshot)
    return is_same and snapshot.revision > base.revision


def _summary(snapshot: Snapshot) -> dict[str, int]:
    return {"revision": snapshot.revision, "flags": len(snapshot.flags), "targets": len(snapshot.targets)}
