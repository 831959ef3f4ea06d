"""Everything that an instance uses of Redis."""

from collections.abc import Sequence

from gatekeeper_grpc.redis_bus.address import RedisAddress
from gatekeeper_grpc.redis_bus.announcements import RedisAnnouncements, RedisAnnouncer
from gatekeeper_grpc.redis_bus.link import RedisLink
from gatekeeper_grpc.redis_bus.nonces import RedisNonces
from gatekeeper_grpc.redis_bus.shared_budgets import RedisSharedBudgets
from gatekeeper_grpc.redis_bus.snapshot_storage import RedisSnapshotStorage

_SNAPSHOT_TIMEOUT_S = 0.3


class RedisBus:
    """Announcements, shared rate limits, used nonces and the last-known-good snapshot over one Redis.

    From `start` to `close`.

    Args:
        url: Its address, see `RedisAddress`.
        installations: Names of the installation, one for each data key, newest first. An installation without any of
            these keys uses other channels and Redis keys.

    Raises:
        ValueError: the URL is wrong. The message repeats no part of it.
    """

    def __init__(self, url: str, installations: Sequence[str]) -> None:
        prefixes, channels = _names(installations)
        address = RedisAddress(url)
        self._link = RedisLink(address)
        # For large pieces, which only a start without a database waits for. The snapshot writer logs its failures.
        self._snapshot_link = RedisLink(address, timeout_s=_SNAPSHOT_TIMEOUT_S, is_quiet=True)
        self._announcer = RedisAnnouncer(self._link, channels[0])
        self.announcements = RedisAnnouncements(self._link, channels)
        self.budgets = RedisSharedBudgets(self._link, prefixes[0])
        self.nonces = RedisNonces(self._link)
        self.snapshot = RedisSnapshotStorage(self._snapshot_link, prefixes)

    def start(self) -> None:
        """Begin to publish."""
        self._announcer.start()

    def use_url(self, url: str) -> None:
        """Use another address from now on, if Redis answers there; else nothing changes.

        Raises:
            ValueError: As for the constructor.
            Unavailable: Redis does not answer there.
        """
        address = RedisAddress(url)
        self._link.use(address)
        self._snapshot_link.use(address)
        self.announcements.renew()

    def use_names(self, installations: Sequence[str]) -> None:
        """Use the channels and keys of other names of the installation from now on."""
        prefixes, channels = _names(installations)
        self.snapshot.use(prefixes)
        self.budgets.use(prefixes[0])
        self._announcer.channel = channels[0]
        self.announcements.use(channels)

    def announce(self, revision: int) -> None:
        """Publish a committed revision soon; does not wait."""
        self._announcer.announce(revision)

    def close(self) -> None:
        """Stop publishing, and close all connections."""
        self._announcer.close()
        self._link.close()
        self._snapshot_link.close()


def _names(installations: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the prefixes of keys, and the channels."""
    prefixes = [f"gatekeeper:{name}" for name in installations]
    return prefixes, [f"{prefix}:revision" for prefix in prefixes]
