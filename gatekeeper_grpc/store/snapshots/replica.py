"""Loads whole snapshots from a read replica, to spare the primary; what it lacks comes from the primary."""

from dataclasses import replace

import structlog

from gatekeeper_grpc.domain.errors import HistoryLost, Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore

_log = structlog.get_logger(__name__)


class ReplicaFirst:
    """A source of snapshots that is as good as the primary, and loads from the replica what is large.

    A replica may lag, by seconds or by days, or follow what is primary no more. So whatever it has is brought up to
    date by the primary's change log, which also tells when that does not lead there: then everything comes from the
    primary. Without the primary there is nothing that this source can vouch for.
    """

    def __init__(self, primary: SnapshotStore, replica: SnapshotStore) -> None:
        self._primary = primary
        self._replica = replica
        self._replica_is_away = False

    def head(self) -> int:
        """Read the newest revision, and nothing else."""
        return self._primary.head()

    def newest_of(self, epoch: int) -> int | None:
        """Read the newest revision of an epoch that is not lost; None when nothing is known of it any more."""
        return self._primary.newest_of(epoch)

    def load_since(self, base: Snapshot) -> Snapshot:
        """Load what changed since `base`; everything, through the replica, when the change log does not say."""
        changed = self._primary.load_delta(base)
        return self.load(sharing=base) if changed is None else changed

    def load(self, *, sharing: Snapshot | None = None) -> Snapshot:
        """Load everything, see `SnapshotStore.load`; `Unavailable` without the primary, whatever the replica has."""
        self._primary.head()  # A million targets of the replica would be of no use without it.
        try:
            loaded = self._replica.load(sharing=sharing)
        except Unavailable as exc:
            self._note(is_away=True, reason=str(exc))
            return self._primary.load(sharing=sharing)
        self._note(is_away=False)
        changed = self._brought_up(loaded)
        return self._primary.load(sharing=sharing) if changed is None else _with_earlier_changes(loaded, changed)

    def _brought_up(self, loaded: Snapshot) -> Snapshot | None:
        try:
            return self._primary.load_delta(loaded)
        except HistoryLost:  # It follows what is primary no more.
            return None

    def _note(self, *, is_away: bool, reason: str = "") -> None:
        if is_away and not self._replica_is_away:
            _log.warning("replica_away", reason=reason)
        elif self._replica_is_away and not is_away:
            _log.info("replica_back")
        self._replica_is_away = is_away


def _with_earlier_changes(loaded: Snapshot, changed: Snapshot) -> Snapshot:
    """Return what `loaded` was brought up to, with the flag changes before it as well as those since."""
    if changed is loaded or loaded.changes is None or changed.changes is None:
        return changed
    return replace(changed, changes=loaded.changes.followed_by(changed.changes))
