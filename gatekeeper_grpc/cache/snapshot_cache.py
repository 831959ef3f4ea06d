"""The snapshot that this instance serves: read without a lock, replaced by newer ones only."""

import math
import threading
import time
from collections.abc import Callable
from uuid import UUID

import structlog

from gatekeeper_grpc.domain.errors import FailedPrecondition, Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot

# After the head lacked a revision, it is not read again for that revision or later ones within this time. So a client
# that keeps asking for revisions that do not exist causes at most ten reads a second.
_HEAD_IS_FRESH_S = 0.1
_CATCH_UP_TIMEOUT_S = 0.5
# Older than every revision: nothing is requested, or nothing is served.
_NO_REVISION = -1

_log = structlog.get_logger(__name__)


class SnapshotCache:
    """Holds the current snapshot, and lets callers wait for a revision.

    Args:
        stale_after_s: Without a confirmation for longer than this, answers are marked stale.
        max_waiters: How many `at_least` calls may wait at once. Further ones are refused: waiting calls must not occupy
            all evaluation workers.
        clock: Monotonic seconds.
        published: Called with each snapshot after it has become the current one, in that order; must not block.
    """

    def __init__(
        self,
        *,
        stale_after_s: float,
        max_waiters: int,
        clock: Callable[[], float] = time.monotonic,
        published: Callable[[Snapshot], object] = lambda _snapshot: None,
    ) -> None:
        self._published = published
        self._stale_after_s = stale_after_s
        self._clock = clock
        self._snapshot: Snapshot | None = None
        # When the database last said that `_snapshot` is the newest, or delivered it.
        self._confirmed_at = -math.inf
        # Guards the two above against other writers; readers take either with one attribute read.
        self._changed = threading.Condition()
        self._waiters = threading.BoundedSemaphore(max_waiters)
        # The newest revision that a refresh is requested for. Guarded by its own condition: a request must not wait for
        # a publication.
        self._requested: float = _NO_REVISION
        self._requests = threading.Condition()
        self._read_head: Callable[[], object] = lambda: None
        # The newest revision when the database was last asked for it alone, and the time before it was asked.
        self._head = (0, -math.inf)
        # The revision last refused because the head lacked it, and when the head was read. Replaced whole.
        self._missing = (math.inf, -math.inf)

    def current(self) -> Snapshot:
        """Return the current snapshot.

        Raises:
            Unavailable: no snapshot is loaded yet.
        """
        snapshot = self._snapshot
        if snapshot is None:
            raise Unavailable("no snapshot of the flags is loaded yet", retry_after_s=1.0)
        return snapshot

    def peek(self) -> Snapshot | None:
        """Return the current snapshot, or None before the first one."""
        return self._snapshot

    def served_revision(self, installation_id: UUID) -> int:
        """Return the served revision of this installation; 0 when nothing, or another installation, is served."""
        snapshot = self._snapshot
        return snapshot.revision if snapshot and snapshot.installation_id == installation_id else 0

    def is_stale(self) -> bool:
        """Whether the database has not confirmed the current snapshot as the newest for longer than `stale_after_s`."""
        return self.unconfirmed_s() > self._stale_after_s

    def unconfirmed_s(self) -> float:
        """Return the seconds since the database last confirmed the current snapshot; infinity before the first time."""
        return self._clock() - self._confirmed_at

    def at_least(self, revision: int, *, asked_as: str = "min_revision") -> Snapshot:
        """Return a snapshot at `revision` or later; 0: the current one.

        Args:
            revision: The oldest acceptable revision.
            asked_as: The request's field that holds it, for errors.

        Raises:
            FailedPrecondition: the revision does not exist yet, or did not within the last 100 ms.
            Unavailable: no snapshot is loaded, the snapshot could not catch up within 500 ms, or too many callers wait.
        """
        snapshot = self.current()
        if snapshot.revision >= revision:
            return snapshot
        if self._is_known_missing(revision):
            raise _not_reached(revision, snapshot.revision, asked_as)
        if not self._waiters.acquire(blocking=False):
            raise Unavailable("too many calls wait for a revision already", retry_after_s=_CATCH_UP_TIMEOUT_S)
        try:
            return self._caught_up(revision, asked_as)
        finally:
            self._waiters.release()

    def _caught_up(self, revision: int, asked_as: str) -> Snapshot:
        asked_at = self._clock()
        deadline = time.monotonic() + _CATCH_UP_TIMEOUT_S
        self._read_head()
        # A revision that does not exist is refused without loading anything, even while a long load is under way.
        self._wait(lambda: self._newest_since(asked_at) is not None or self._has(revision), deadline)
        newest = self._newest_since(asked_at)
        if newest is not None and newest < revision:
            self._missing = (revision, asked_at)
            raise _not_reached(revision, newest, asked_as)
        if newest is not None and not self._has(revision):
            self.request_refresh(revision)
            self._wait(lambda: self._has(revision), deadline)
        if not self._has(revision):
            raise Unavailable("this instance cannot catch up with the newest revision now", retry_after_s=1.0)
        return self.current()

    def _has(self, revision: int) -> bool:
        return self._snapshot is not None and self._snapshot.revision >= revision

    def _newest_since(self, asked_at: float) -> int | None:
        """Return the newest revision that was read from the database since then; None when none was."""
        head, read_at = self._head
        found = [head] if read_at >= asked_at else []
        if self._confirmed_at >= asked_at:
            found.append(self.current().revision)
        return max(found, default=None)

    def _is_known_missing(self, revision: int) -> bool:
        missing, read_at = self._missing
        return revision >= missing and self._clock() - read_at < _HEAD_IS_FRESH_S

    def wait_for_revision(self, revision: int, *, timeout_s: float) -> bool:
        """Request a refresh and wait until the snapshot is at `revision` or later; False after `timeout_s`."""
        self.request_refresh(revision)
        return self._wait(lambda: self._has(revision), time.monotonic() + timeout_s)

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Request a refresh and wait until a condition of this cache holds; False after `timeout_s`."""
        self.request_refresh()
        return self._wait(condition, time.monotonic() + timeout_s)

    def wake_waiters(self) -> None:
        """Let waiting calls check their conditions again: those of a start-up depend on more than this cache."""
        with self._changed:
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], deadline: float) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, max(0.0, deadline - time.monotonic()))

    def publish(self, snapshot: Snapshot, *, confirmed_at: float, instead_of: Snapshot | None = None) -> bool:
        """Make `snapshot` the current one, unless a newer one of the same installation is; return whether it was.

        A snapshot of another installation replaces any snapshot.

        Args:
            snapshot: What the database held.
            confirmed_at: The clock's time before the database was asked; minus infinity when it was not the primary.
            instead_of: The base of the delta that made `snapshot`. It replaces no other snapshot: one that was loaded
                whole during the delta may hold corrections that no delta contains.
        """
        with self._changed:
            before = self._snapshot
            if before is not None and instead_of is not None and instead_of is not before:
                return False
            is_foreign = before is not None and before.installation_id != snapshot.installation_id
            if before is not None and not is_foreign and snapshot.revision < before.revision:
                return False
            self._snapshot = snapshot
            self._confirmed_at = confirmed_at if is_foreign else max(confirmed_at, self._confirmed_at)
            # Not before: a client that hears of a change evaluates at once, and must not get the old answer.
            self._published(snapshot)
            self._changed.notify_all()
        if before is not None and is_foreign:
            _log.error("installation_changed", **_log_fields(before, "_before"), **_log_fields(snapshot))
        return True

    def recall(self, snapshot: Snapshot) -> bool:
        """Serve a stored snapshot, unconfirmed, until the database delivers one; False when one is served already."""
        with self._changed:  # A condition may be entered twice.
            return self._snapshot is None and self.publish(snapshot, confirmed_at=-math.inf)

    def request_refresh(self, revision: float = math.inf) -> None:
        """Wake `wait_for_request`, unless `revision` is served by the time it looks.

        A refresh that is under way may bring the revision; then no second one runs. Without a revision, one runs.
        """
        with self._requests:
            self._requested = max(self._requested, revision)
            self._requests.notify_all()

    def wait_for_request(self, timeout_s: float) -> bool:
        """Wait until a refresh is requested for a revision that is not served, at most `timeout_s`.

        All requests made before this returns are served by one refresh. Returns whether there was one.
        """
        with self._requests:
            is_requested = self._requests.wait_for(self._is_refresh_needed, timeout_s)
            self._requested = _NO_REVISION
        return is_requested

    def _is_refresh_needed(self) -> bool:
        served = _NO_REVISION if self._snapshot is None else self._snapshot.revision
        return self._requested > served

    def read_head_with(self, request: Callable[[], object]) -> None:
        """Set what `at_least` calls to have the newest revision read; the answer comes through `note_head`."""
        self._read_head = request

    def note_head(self, revision: int, *, read_at: float) -> None:
        """Record the newest revision in the database, and wake the calls that wait for it.

        Args:
            revision: What the database said.
            read_at: The clock's time before it was asked.
        """
        with self._changed:
            self._head = (revision, read_at)
            self._changed.notify_all()


def _log_fields(snapshot: Snapshot, suffix: str = "") -> dict[str, object]:
    fields = {"installation_id": str(snapshot.installation_id), "revision": snapshot.revision}
    return {f"{name}{suffix}": value for name, value in fields.items()}


def _not_reached(wanted: int, newest: int, asked_as: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{asked_as} {wanted} does not exist yet; the newest revision is {newest}",
        reason="REVISION_NOT_REACHED",
        metadata={asked_as: str(wanted), "revision": str(newest)},
    )
