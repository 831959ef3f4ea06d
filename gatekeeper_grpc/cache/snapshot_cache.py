"""The snapshot that this instance answers from: read without a lock, replaced by newer ones only."""

import math
import threading
import time
from collections.abc import Callable
from uuid import UUID

import structlog

from gatekeeper_grpc.domain.errors import FailedPrecondition, Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot

# A head that did not have a revision is not read again for that revision, or later ones, within this time: a client
# that asks for revisions that do not exist cannot make us read it each time.
_HEAD_IS_FRESH_S = 0.1
_CATCH_UP_TIMEOUT_S = 0.5

_log = structlog.get_logger(__name__)


class SnapshotCache:
    """Holds the current snapshot, and lets callers wait for a revision.

    Args:
        stale_after_s: Without a confirmation for longer than this, answers are marked stale.
        max_waiters: How many `at_least` calls may wait at once; further ones are refused, so that they cannot stop
        evaluation.
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
        # Guards the two above against writers; readers take either with one attribute read.
        self._changed = threading.Condition()
        self._waiters = threading.BoundedSemaphore(max_waiters)
        self._wanted = threading.Event()
        self._head_wanted = threading.Event()
        # The newest revision that there was when the database was last asked for it alone, and when that was.
        self._head = (0, -math.inf)
        # The revision last refused because the head did not have it, and when the head was read. Replaced whole.
        self._missing = (math.inf, -math.inf)

    def current(self) -> Snapshot:
        """Return the current snapshot; `Unavailable` before the first one."""
        snapshot = self._snapshot
        if snapshot is None:
            raise Unavailable("no snapshot of the flags is loaded yet", retry_after_s=1.0)
        return snapshot

    def peek(self) -> Snapshot | None:
        """Return the current snapshot, or None before the first one."""
        return self._snapshot

    def served_revision(self, installation_id: UUID) -> int:
        """Return the revision of this installation that is served; 0 when none is."""
        snapshot = self._snapshot
        return snapshot.revision if snapshot and snapshot.installation_id == installation_id else 0

    def is_stale(self) -> bool:
        """Tell whether the current snapshot could not be confirmed as the newest for longer than the bound."""
        return self.unconfirmed_s() > self._stale_after_s

    def unconfirmed_s(self) -> float:
        """Return for how many seconds the database has not confirmed the current snapshot.

        Infinity before the first.
        """
        return self._clock() - self._confirmed_at

    def at_least(self, revision: int, *, asked_as: str = "min_revision") -> Snapshot:
        """Return a snapshot at `revision` or later; 0: the current one.

        Errors: `FailedPrecondition` when the revision does not exist yet, or did not in the last 100 ms, `Unavailable`
        when that cannot be found out within 500 ms or too many callers wait already. Never an older snapshot. Errors
        name the request's field by which the revision was asked for.
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
        self.request_head()
        # What does not exist is refused without loading anything, and while a long load is on its way.
        self._wait(lambda: self._newest_since(asked_at) is not None or self._has(revision), deadline)
        newest = self._newest_since(asked_at)
        if newest is not None and newest < revision:
            self._missing = (revision, asked_at)
            raise _not_reached(revision, newest, asked_as)
        if newest is not None and not self._has(revision):
            self.request_refresh()
            self._wait(lambda: self._has(revision), deadline)
        if not self._has(revision):
            raise Unavailable("this instance cannot catch up with the newest revision now", retry_after_s=1.0)
        return self.current()

    def _has(self, revision: int) -> bool:
        return self._snapshot is not None and self._snapshot.revision >= revision

    def _newest_since(self, asked_at: float) -> int | None:
        """Return the newest revision that anybody found in the database since then; None when nobody has looked."""
        head, read_at = self._head
        found = [head] if read_at >= asked_at else []
        if self._confirmed_at >= asked_at:
            found.append(self.current().revision)
        return max(found, default=None)

    def _is_known_missing(self, revision: int) -> bool:
        missing, read_at = self._missing
        return revision >= missing and self._clock() - read_at < _HEAD_IS_FRESH_S

    def wait_for_revision(self, revision: int, *, timeout_s: float) -> bool:
        """Have the snapshot refreshed and wait until it is at `revision` or later; False when that took too long."""
        return self.wait_for(lambda: self._has(revision), timeout_s=timeout_s)

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Have the snapshot refreshed and wait until a condition of this cache holds; False when that took too long."""
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
        """Make `snapshot` the current one, unless a newer one of the same installation is; tell whether it was.

        A snapshot of another installation takes the place of whatever is there.

        Args:
            snapshot: What the database held.
            confirmed_at: The clock's time before the database was asked; minus infinity when it was not the primary.
            instead_of: What `snapshot` was made from by a delta: it takes no other one's place, for what was loaded
                whole meanwhile may know what no delta tells.
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
            # Not before: whoever is told of a change asks at once, and must not get the old answer.
            self._published(snapshot)
            self._changed.notify_all()
        if before is not None and is_foreign:
            _log.error("installation_changed", **_storage(before, "_before"), **_storage(snapshot))
        return True

    def recall(self, snapshot: Snapshot) -> bool:
        """Serve a snapshot that was kept, unconfirmed, until there is one; False when there is one already."""
        with self._changed:
            if self._snapshot is not None:
                return False
            self._snapshot = snapshot
            self._published(snapshot)
            self._changed.notify_all()
            return True

    def request_refresh(self) -> None:
        """Wake whoever waits in `wait_for_request`."""
        self._wanted.set()

    def note_head(self, revision: int, *, read_at: float) -> None:
        """Take note of the newest revision there is, and tell those who wait for that.

        Args:
            revision: What the database said.
            read_at: The clock's time before it was asked.
        """
        with self._changed:
            self._head = (revision, read_at)
            self._changed.notify_all()

    def request_head(self) -> None:
        """Wake whoever waits in `wait_for_head_request`."""
        self._head_wanted.set()

    def wait_for_head_request(self, timeout_s: float) -> None:
        """Wait until somebody wants to know the newest revision, at most `timeout_s`.

        Requests made before this returns are served by one look.
        """
        self._head_wanted.wait(timeout_s)
        self._head_wanted.clear()

    def wait_for_request(self, timeout_s: float) -> None:
        """Wait until a refresh is requested, at most `timeout_s`.

        Requests made before this returns are served by one refresh.
        """
        self._wanted.wait(timeout_s)
        self._wanted.clear()


def _storage(snapshot: Snapshot, suffix: str = "") -> dict[str, object]:
    fields = {"installation_id": str(snapshot.installation_id), "revision": snapshot.revision}
    return {f"{name}{suffix}": value for name, value in fields.items()}


def _not_reached(wanted: int, newest: int, asked_as: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{asked_as} {wanted} does not exist yet; the newest revision is {newest}",
        reason="REVISION_NOT_REACHED",
        metadata={asked_as: str(wanted), "revision": str(newest)},
    )
