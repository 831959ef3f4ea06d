"""What a start answers from: the database's snapshot, or, while that does not come, the last-known-good one."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from gatekeeper_grpc.cache.last_known_good import StoredSnapshot, newest_revision, newest_stored
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.snapshot_format import Sealer
from gatekeeper_grpc.cache.snapshot_storage import SnapshotStorage
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.lifecycle.open_database import DatabaseConnector

_log = structlog.get_logger(__name__)

# Without a kept snapshot there is nothing better to do than to wait for the first one.
_FIRST_SNAPSHOT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupTimeouts:
    """How many seconds a start waits for the database before it answers from what was kept."""

    refused_s: float
    """When it refuses connections, for it to take them after all."""
    silent_s: float
    """When it says nothing, for it to be there and fit."""
    loading_s: float
    """When it is there and fit, for everything to be loaded."""


# Whoever starts without a database is to answer within two seconds, half of which the start itself takes.
FOR_OTHERS = StartupTimeouts(refused_s=0.4, silent_s=0.8, loading_s=2.0)
# The embedded database comes and goes with the process: it is there, and only slow.
FOR_EMBEDDED = StartupTimeouts(
    refused_s=_FIRST_SNAPSHOT_TIMEOUT_S, silent_s=_FIRST_SNAPSHOT_TIMEOUT_S, loading_s=_FIRST_SNAPSHOT_TIMEOUT_S
)


class FirstSnapshot:
    """Waits for the first snapshot of a start, and tells where answers come from until the database has spoken.

    `expect` is told of a revision that is kept and newer than the database's: before anything is served, and written,
    it has to find out whether the database has lost that.
    """

    def __init__(
        self,
        cache: SnapshotCache,
        opening: DatabaseConnector,
        storages: Sequence[SnapshotStorage],
        *,
        sealer: Sealer,
        patience: StartupTimeouts,
        expect: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._cache = cache
        self._opening = opening
        self._storages = storages
        self._sealer = sealer
        self._patience = patience
        self._expect = expect
        self._recalled: StoredSnapshot | None = None

    def wait(self) -> None:
        """Wait for the database's snapshot; after some patience, recall the newest kept one if there is any.

        Errors: what kept the database from being opened, when it is unfit, or away with nothing kept.
        """
        began = time.monotonic()
        self._opening.wait_until(self._is_settled, timeout_s=FOR_OTHERS.silent_s)
        is_wanted = not (self._is_there() or self._opening.is_refused)
        kept = newest_stored(self._storages, self._sealer) if is_wanted else None
        if kept is None:
            self._opening.wait_until_open()
            self._cache.wait_for_revision(0, timeout_s=_FIRST_SNAPSHOT_TIMEOUT_S)
        else:
            self._opening.wait_until(lambda: self._is_there() or time.monotonic() - began > self._patience_s())
            if self._opening.is_refused:
                self._opening.wait_until_open()
            self._recall(kept)
        if self._recalled is None:
            self._check_nothing_lost()

    @property
    def last_known_good(self) -> StoredSnapshot | None:
        """The kept snapshot that answers are from, as long as no database has confirmed it, or brought another."""
        recalled = self._recalled
        is_served = recalled is not None and self._cache.peek() is recalled.snapshot
        return recalled if is_served and math.isinf(self._cache.unconfirmed_s()) else None

    def reasons(self) -> Iterator[str]:
        """Say, in sentences for operators, what is amiss since the start."""
        kept, failure = self.last_known_good, self._opening.failure
        if kept:
            confirmed = kept.header.confirmed_time.isoformat(timespec="seconds")
            yield f"answers are from the last-known-good snapshot ({kept.storage}), confirmed at {confirmed}"
        if failure:
            words = str(failure) if isinstance(failure, GatekeeperError) else "of an internal error, see the log"
            yield f"the database is not open: {words}"

    def _patience_s(self) -> float:
        """How long to wait in all, by what is known of the database now."""
        if self._opening.is_open:
            return self._patience.loading_s
        return self._patience.refused_s if self._opening.failure else self._patience.silent_s

    def _is_there(self) -> bool:
        return self._cache.peek() is not None

    def _is_settled(self) -> bool:
        """Whether the first attempt to open the database has led to something."""
        return self._is_there() or self._opening.failure is not None

    def _check_nothing_lost(self) -> None:
        snapshot = self._cache.peek()
        if snapshot is None:
            return
        kept = newest_revision(self._storages, self._sealer, installation_id=snapshot.installation_id)
        try:
            if kept > snapshot.revision:
                self._expect(kept)
        except GatekeeperError as exc:  # Whoever keeps snapshots meets it again.
            _log.warning("kept_revision_not_looked_for", revision=kept, error=str(exc))

    def _recall(self, kept: StoredSnapshot) -> None:
        if not self._cache.recall(kept.snapshot):
            return
        self._recalled = kept
        _log.warning(
            "serving_last_known_good",
            storage=kept.storage,
            revision=kept.header.revision,
            confirmed_time=kept.header.confirmed_time.isoformat(timespec="seconds"),
            flags=len(kept.snapshot.flags),
        )
        self._opening.report()
