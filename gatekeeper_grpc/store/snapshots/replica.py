"""Loads full snapshots from a read replica, to spare the primary, and later changes from the primary."""

from dataclasses import replace

import structlog

from gatekeeper_grpc.domain.errors import HistoryLost, Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore

_log = structlog.get_logger(__name__)


class ReplicaFirst:
    """Loads snapshots that are as current as the primary's, large parts of them from the replica.

    A replica may lag, by seconds or by days, or follow a former primary. So its snapshot is brought up to date by the
    primary's change log; if that is not possible, everything comes from the primary. Without the primary this source
    loads nothing.
    """

    def __init__(self, primary: SnapshotStore, replica: SnapshotStore) -> None:
        self._primary = primary
        self._replica = replica
        self._is_unreachable = False

    def head(self) -> int:
        """Read the newest revision, and nothing else."""
        return self._primary.head()

    def newest_of(self, epoch: int) -> int | None:
        """Read the newest revision of an epoch; None if its audit entries are archived or lost."""
        return self._primary.newest_of(epoch)

    def load_since(self, base: Snapshot, *, paced: bool = True) -> Snapshot:
        """Load the changes since `base`; everything, through the replica, if the change log is not sufficient."""
        changed = self._primary.load_delta(base)
        return self.load(sharing=base, paced=paced) if changed is None else changed

    def load(self, *, sharing: Snapshot | None = None, paced: bool = True) -> Snapshot:
        """Load everything, see `SnapshotStore.load`.

        Raises:
            Unavailable: The primary cannot be reached, even if the replica can.
        """
        self._primary.head()  # Before a million targets are read from the replica in vain.
        try:
            loaded = self._replica.load(sharing=sharing, paced=paced)
        except Unavailable as exc:
            self._report(is_unreachable=True, reason=str(exc))
            return self._primary.load(sharing=sharing, paced=paced)
        self._report(is_unreachable=False)
        changed = self._brought_up(loaded)
        if changed is None:
            return self._primary.load(sharing=sharing, paced=paced)
        return _with_earlier_changes(loaded, changed)

    def _brought_up(self, loaded: Snapshot) -> Snapshot | None:
        try:
            return self._primary.load_delta(loaded)
        except HistoryLost:  # The replica follows a former primary.
            return None

    def _report(self, *, is_unreachable: bool, reason: str = "") -> None:
        if is_unreachable and not self._is_unreachable:
            _log.warning("replica_unreachable", reason=reason)
        elif self._is_unreachable and not is_unreachable:
            _log.info("replica_reachable")
        self._is_unreachable = is_unreachable


def _with_earlier_changes(loaded: Snapshot, changed: Snapshot) -> Snapshot:
    """Return `changed` with the flag changes of `loaded` as well."""
    if changed is loaded or loaded.changes is None or changed.changes is None:
        return changed
    return replace(changed, changes=loaded.changes.followed_by(changed.changes))
