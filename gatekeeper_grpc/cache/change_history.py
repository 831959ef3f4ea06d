"""The recent flag changes, in memory: what each watcher has missed, after a short or a long absence."""

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
    """Up to which revision of an installation a watcher has received changes."""

    installation_id: UUID
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """The changes between a position and `position`, by flag key; None when the history is too short to tell."""

    changes: Mapping[str, ChangeType] | None
    position: Position


class ChangeHistory:
    """The changes that led to the served snapshot, the last `capacity` of them.

    Thread-safe. `since` takes time proportional to its result, `extend` to the changes that it adds.
    """

    def __init__(self, *, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()  # guards all below
        self._position = Position(NO_INSTALLATION, 0)
        # The changes after this revision are complete.
        self._since = 0
        self._changes: list[FlagChange] = []

    @property
    def position(self) -> Position:
        """The newest position."""
        return self._position

    def at(self, revision: int) -> Position:
        """Return the position of a watcher that knows a revision of this installation."""
        return Position(self._position.installation_id, revision)

    def extend(self, snapshot: Snapshot) -> None:
        """Add the changes that led to `snapshot`, which is served from now on.

        If its changes do not reach back to the snapshot before it, the history starts again with it.
        """
        with self._lock:
            if not self._is_continued_by(snapshot):
                self._begin(snapshot)
            elif snapshot.changes is not None:
                self._append(snapshot.changes.changes)
            self._position = Position(snapshot.installation_id, snapshot.revision)
            self._make_room()

    def since(self, position: Position) -> Missed:
        """Return the changes after `position`."""
        with self._lock:
            newest = self._position
            is_known = position.installation_id == newest.installation_id and position.revision >= self._since
            missed = self._changes[bisect_right(self._changes, position.revision, key=_revision) :] if is_known else []
        if not is_known:
            return Missed(changes=None, position=newest)
        # A client may have evaluated with a snapshot that is served already and not yet in the history.
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
        """Remove changes that later ones cover, then the oldest revisions as a whole.

        Only when the capacity is exceeded by a quarter: it takes time proportional to the whole history.
        """
        if len(self._changes) <= self._capacity * 5 // 4:
            return
        self._changes = without_covered(self._changes)
        if len(self._changes) > self._capacity:
            self._since = self._changes[-self._capacity - 1].revision
            del self._changes[: bisect_right(self._changes, self._since, key=_revision)]
