"""The flag changes of late, in memory: from it each watcher is told what it has missed, however long it was away."""

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from uuid import UUID

from gatekeeper_grpc.domain.flag_change import FlagChange, coalesced, without_covered
from gatekeeper_grpc.domain.mutation import ChangeType
from gatekeeper_grpc.domain.snapshot import NO_INSTALLATION, Snapshot

_CAPACITY = 50_000
_revision = attrgetter("revision")


@dataclass(frozen=True, slots=True)
class Position:
    """How far somebody has been told of an installation."""

    installation_id: UUID
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """What happened between a position and `position`, by flag key; None: that is not known any more."""

    changes: Mapping[str, ChangeType] | None
    position: Position


class ChangeHistory:
    """What led to the snapshot that is served, as far back as `capacity` flag changes.

    Thread-safe; every method but `since` takes constant time, or that of the change.
    """

    def __init__(self, *, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()  # guards all below
        self._position = Position(NO_INSTALLATION, 0)
        # Complete for whoever was told everything up to this revision.
        self._since = 0
        self._changes: list[FlagChange] = []

    @property
    def position(self) -> Position:
        """The newest position."""
        return self._position

    def at(self, revision: int) -> Position:
        """Return the position of somebody who was told everything up to a revision of this installation."""
        return Position(self._position.installation_id, revision)

    def extend(self, snapshot: Snapshot) -> None:
        """Add what led to `snapshot`, which is served from now on.

        Where its changes do not reach back to the snapshot before it, the history begins anew.
        """
        with self._lock:
            if not self._is_continued_by(snapshot):
                self._begin(snapshot)
            elif snapshot.changes is not None:
                self._append(snapshot.changes.changes)
            self._position = Position(snapshot.installation_id, snapshot.revision)
            self._make_room()

    def since(self, position: Position) -> Missed:
        """Return what happened after `position`. Takes time proportional to that."""
        with self._lock:
            newest = self._position
            is_known = position.installation_id == newest.installation_id and position.revision >= self._since
            missed = self._changes[bisect_right(self._changes, position.revision, key=_revision) :] if is_known else []
        if not is_known:
            return Missed(changes=None, position=newest)
        # Whoever opens a stream may have been answered by a snapshot that is served and not yet in the history.
        at = newest if newest.revision >= position.revision else position
        return Missed(changes=coalesced(missed), position=at)

    def _is_continued_by(self, snapshot: Snapshot) -> bool:
        known = self._position.revision
        if snapshot.installation_id != self._position.installation_id:
            return False
        if snapshot.revision == known:
            return True
        return snapshot.changes is not None and snapshot.changes.since <= known < snapshot.revision

    def _begin(self, snapshot: Snapshot) -> None:
        changes = snapshot.changes
        self._since = snapshot.revision if changes is None else changes.since
        self._changes = [] if changes is None else [*changes.changes]

    def _append(self, changes: Sequence[FlagChange]) -> None:
        self._changes += changes[bisect_right(changes, self._position.revision, key=_revision) :]

    def _make_room(self) -> None:
        """Forget what later changes cover, then the oldest revisions, whole ones.

        Not before there are a quarter too many: it takes time proportional to all that is kept.
        """
        if len(self._changes) <= self._capacity * 5 // 4:
            return
        self._changes = without_covered(self._changes)
        if len(self._changes) > self._capacity:
            self._since = self._changes[-self._capacity - 1].revision
            del self._changes[: bisect_right(self._changes, self._since, key=_revision)]
