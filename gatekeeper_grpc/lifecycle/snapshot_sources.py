"""The sources of snapshots: database, replica, Redis, file; and the storages of the last-known-good one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gatekeeper_grpc.cache.refresher import Announcements, Refresher
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.snapshot_file import SnapshotFile
from gatekeeper_grpc.cache.snapshot_storage import SnapshotStorage
from gatekeeper_grpc.cache.snapshot_writer import SnapshotWriter
from gatekeeper_grpc.config.settings import Settings, SettingsError, variable_of
from gatekeeper_grpc.lifecycle.keys import Keys
from gatekeeper_grpc.scheduler import Scheduler
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots.epochs import Epochs
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from gatekeeper_grpc.store.snapshots.notifications import RevisionListener
from gatekeeper_grpc.store.snapshots.replica import ReplicaFirst

if TYPE_CHECKING:
    from gatekeeper_grpc.redis_bus.bus import RedisBus

_SNAPSHOT_FILE = "snapshot"
# The refresh and the reload may load at the same time; nothing else does.
_REPLICA_CONNECTIONS = 2


class SnapshotSources:
    """Fills a cache from the database, and from what the settings add: a read replica, Redis, a file.

    Args:
        settings: What the operator decided.
        cache: The cache to fill.
        database: The primary.
        mutations: Begins a new epoch when the database has lost what was served.
        bus: Redis, when there is one.
        keys: Seal stored snapshots.
    """

    def __init__(
        self,
        settings: Settings,
        cache: SnapshotCache,
        database: Database,
        mutations: MutationRunner,
        *,
        bus: "RedisBus | None",
        keys: Keys,
    ) -> None:
        self._bus = bus
        self.replica = _replica(settings)
        """The read replica, if there is one."""
        primary, replica = SnapshotStore(database), SnapshotStore(self.replica) if self.replica else None
        announcements: list[Announcements] = [RevisionListener(database)]
        self.storages = snapshot_storages(settings, bus)
        if bus:
            announcements.append(bus.announcements)
        self.refresher = Refresher(
            cache,
            ReplicaFirst(primary, replica) if replica else primary,
            announcements,
            report_loss=Epochs(mutations).start_if_lost,
            fallback=replica,
            poll_interval_s=settings.refresh_interval_s,
            reload_interval_s=settings.reload_interval_s,
        )
        self.writers: Sequence[SnapshotWriter] = [
            SnapshotWriter(cache, storage, keys.data, on_newer=self.refresher.expect) for storage in self.storages
        ]

    def start(self) -> None:
        """Start to load snapshots. The database must be open."""
        if self.replica:
            self.replica.open()
        if self._bus:
            self._bus.start()
        self.refresher.start()

    def start_writing(self, scheduler: Scheduler) -> None:
        """Start to store what is served, for a start without the database."""
        for writer in self.writers:
            writer.start(scheduler)

    def close(self) -> None:
        """Stop loading, store the last snapshot, and close all connections except the primary's."""
        self.refresher.close()
        if self.replica:
            self.replica.close()
        for writer in self.writers:
            writer.close()
        if self._bus:
            self._bus.close()


def snapshot_storages(settings: Settings, bus: "RedisBus | None") -> Sequence[SnapshotStorage]:
    """Return where the last-known-good snapshot is kept."""
    file = SnapshotFile(settings.snapshot_file or settings.data_dir / _SNAPSHOT_FILE)
    return [file, bus.snapshot] if bus else [file]


def redis_bus(settings: Settings, keys: Keys) -> "RedisBus | None":
    """Make the Redis bus, unconnected; None without REDIS_URL.

    Raises:
        SettingsError: REDIS_URL is wrong.
    """
    if settings.redis_url is None:
        return None
    # Here, because importing redis takes 0.2 s, which a start without it need not spend.
    from gatekeeper_grpc.redis_bus.bus import RedisBus  # noqa: PLC0415

    try:
        return RedisBus(settings.redis_url.get_secret_value(), keys.data.fingerprints)
    except ValueError as exc:
        raise SettingsError(f"{variable_of('redis_url')} {exc}") from None


def _replica(settings: Settings) -> Database | None:
    """Make the pool of the read replica, if one is configured."""
    if settings.read_database_url is None:
        return None
    return Database(
        settings.read_database_url.get_secret_value(),
        pool_size=_REPLICA_CONNECTIONS,
        statement_timeout_s=settings.db_statement_timeout_s,
        hung_after_s=settings.db_hung_after_s,
        for_writing=False,
    )
