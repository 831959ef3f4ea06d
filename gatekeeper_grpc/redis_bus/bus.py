"""All that an instance has of Redis, put together."""

from collections.abc import Sequence

from gatekeeper_grpc.redis_bus.address import RedisAddress
from gatekeeper_grpc.redis_bus.announcements import RedisAnnouncements, RedisAnnouncer
from gatekeeper_grpc.redis_bus.link import RedisLink
from gatekeeper_grpc.redis_bus.snapshot_storage import RedisSnapshotStorage

_SNAPSHOT_TIMEOUT_S = 0.3


class RedisBus:
    """Announcements and the last-known-good snapshot over one Redis, from `start` to `close`.

    Args:
        url: Where it is, see `RedisAddress`. `ValueError` says what is wrong with it, and repeats nothing of it.
        installations: Names of the installation, one for each key that seals what is kept, newest first. Whoever has
            none of the keys uses other channels and keys.
    """

    def __init__(self, url: str, installations: Sequence[str]) -> None:
        # Within braces: all that is one installation's lies on one node of a cluster.
        prefixes = [f"gatekeeper:{{{name}}}" for name in installations]
        channels = [f"{prefix}:revision" for prefix in prefixes]
        address = RedisAddress.parse(url)
        self._link = RedisLink(address)
        # Large pieces, for which nobody waits but a start without database; whoever keeps them tells how that goes.
        self._snapshot_link = RedisLink(address, timeout_s=_SNAPSHOT_TIMEOUT_S, is_quiet=True)
        self._announcer = RedisAnnouncer(self._link, channels[0])
        self.announcements = RedisAnnouncements(self._link, channels)
        self.snapshot = RedisSnapshotStorage(self._snapshot_link, prefixes)

    def start(self) -> None:
        """Begin to publish."""
        self._announcer.start()

    def announce(self, revision: int) -> None:
        """Have a committed revision published soon; waits for nothing."""
        self._announcer.announce(revision)

    def close(self) -> None:
        """Stop publishing, and close all connections."""
        self._announcer.close()
        self._link.close()
        self._snapshot_link.close()
