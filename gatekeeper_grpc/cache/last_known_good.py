"""Finds the newest stored snapshot, for a start without a database."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cmp_to_key
from uuid import UUID

import structlog

from gatekeeper_grpc.cache.snapshot_format import (
    HEADER_BYTES,
    SnapshotHeader,
    SnapshotRefused,
    decode,
    decode_header,
)
from gatekeeper_grpc.cache.snapshot_storage import SnapshotStorage
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.domain.sealer import Sealer
from gatekeeper_grpc.domain.snapshot import Snapshot

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSnapshot:
    """A last-known-good snapshot, its header, and the name of the storage that held it."""

    snapshot: Snapshot
    storage: str
    header: SnapshotHeader


def newest_stored(storages: Iterable[SnapshotStorage], sealer: Sealer) -> StoredSnapshot | None:
    """Read the newest usable snapshot; None when there is none. Each unusable one is logged with the reason."""
    found = [(header, storage) for storage in storages if (header := _usable_header(storage, sealer))]
    newest_first = sorted(found, key=cmp_to_key(_newest_first))
    return next((stored for _, storage in newest_first if (stored := _read(storage, sealer))), None)


def newest_revision(storages: Iterable[SnapshotStorage], sealer: Sealer, *, installation_id: UUID) -> int:
    """Return the newest stored revision of an installation; 0 when there is none, or none is readable."""
    headers = [_readable_header(storage, sealer) for storage in storages]
    return max((found.revision for found in headers if found and found.installation_id == installation_id), default=0)


def is_readable(storage: SnapshotStorage, sealer: Sealer) -> bool:
    """Return whether a storage has a snapshot that the keys of `sealer` read.

    Raises:
        GatekeeperError: The storage does not answer.
    """
    beginning = storage.read(HEADER_BYTES)
    try:
        return bool(beginning) and bool(decode_header(beginning, sealer))
    except SnapshotRefused:
        return False


def _readable_header(storage: SnapshotStorage, sealer: Sealer) -> SnapshotHeader | None:
    try:
        return decode_header(storage.read(HEADER_BYTES), sealer)
    except (SnapshotRefused, GatekeeperError):  # The snapshot writer logs it.
        return None


def _newest_first(left: tuple[SnapshotHeader, SnapshotStorage], right: tuple[SnapshotHeader, SnapshotStorage]) -> int:
    return right[0].is_newer_than(left[0]) - left[0].is_newer_than(right[0])


def _usable_header(storage: SnapshotStorage, sealer: Sealer) -> SnapshotHeader | None:
    try:
        beginning = storage.read(HEADER_BYTES)
        return decode_header(beginning, sealer) if beginning else None
    except (SnapshotRefused, GatekeeperError) as exc:
        _log.error("last_known_good_refused", storage=storage.name, error=str(exc))
        return None


def _read(storage: SnapshotStorage, sealer: Sealer) -> StoredSnapshot | None:
    try:
        header, snapshot = decode(storage.read(), sealer)
    except (SnapshotRefused, GatekeeperError) as exc:
        _log.error("last_known_good_refused", storage=storage.name, error=str(exc))
        return None
    return StoredSnapshot(snapshot=snapshot, storage=storage.name, header=header)
