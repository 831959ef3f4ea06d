"""Which data keys something needs: these must stay in the ring."""

from collections.abc import Iterable, Iterator, Mapping

from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.cache.last_known_good import is_readable
from gatekeeper_grpc.cache.snapshot_storage import SnapshotStorage
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.rewrap import SealedStore


def missing_data_keys(database: Database, ring: KeyRing) -> str:
    """Say which data keys rows need and the ring does not have; nothing if it has all.

    Raises:
        Unavailable: The database cannot be reached.
    """
    needed = SealedStore(database).needed_keys()
    return _missing({kid: things for kid, things in needed.items() if kid not in ring.kids})


def use_data_keys(keys: DataKeys, ring: KeyRing, database: Database) -> None:
    """Use another ring from now on.

    Raises:
        ValueError: A key has another secret than before, or one is dropped that rows need.
        Unavailable: The database cannot be reached.
    """
    dropped = set(keys.ring.kids) - set(ring.kids)
    needed = SealedStore(database).needed_keys() if dropped else {}
    if missing := _missing({kid: things for kid, things in needed.items() if kid in dropped}):
        raise ValueError(missing)
    keys.use(ring)


def snapshots_by_key(storages: Iterable[SnapshotStorage], ring: KeyRing) -> Iterator[tuple[str, str]]:
    """Yield of each kept last-known-good snapshot the name of the key that reads it, and of its storage.

    Raises:
        Unavailable: A storage does not answer.
    """
    for storage in storages:
        for key in ring.keys:
            if is_readable(storage, DataKeys(KeyRing((key,)))):
                yield key.kid, storage.name


def in_words(things: Mapping[str, int]) -> str:
    """Say how many there are of each."""
    return " and ".join(f"{count} {name}" for name, count in sorted(things.items()))


def _missing(needed: Mapping[str, Mapping[str, int]]) -> str:
    return "; ".join(
        f"key {kid!r} is missing, with which {in_words(things)} are encrypted" for kid, things in sorted(needed.items())
    )
