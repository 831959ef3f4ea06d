"""Finding the newest stored snapshot."""

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.cache.last_known_good import newest_stored
from gatekeeper_grpc.domain.snapshot import Snapshot
from tests.support.clocks import Clock
from tests.support.servers import KEYS
from tests.support.snapshots import MemoryStorage, stored, whole


@pytest.fixture
def storages() -> tuple[MemoryStorage, MemoryStorage]:
    return (MemoryStorage(Clock(), "file"), MemoryStorage(Clock(), "redis"))


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        pytest.param((whole(5), whole(6)), ("redis", 6), id="the second is newer"),
        pytest.param((whole(6), whole(5)), ("file", 6), id="the first is newer"),
        pytest.param((whole(5), whole(5)), ("file", 5), id="both are the same"),
        pytest.param((None, whole(5)), ("redis", 5), id="the first is empty"),
        pytest.param((None, None), None, id="both are empty"),
    ],
)
def test_the_newest_is_found(
    storages: tuple[MemoryStorage, MemoryStorage],
    contents: tuple[Snapshot | None, Snapshot | None],
    expected: tuple[str, int] | None,
) -> None:
    for storage, snapshot in zip(storages, contents, strict=True):
        storage.content = stored(snapshot) if snapshot else b""

    found = newest_stored(storages, KEYS.data)

    assert (found and (found.storage, found.snapshot.revision)) == expected


def damaged(snapshot: Snapshot) -> bytes:
    return stored(snapshot)[:-9] + b"damaged!!"


FOREIGN = DataKeys(KeyRing.parse("elsewhere:" + "e" * 32))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(damaged(whole(9)), "damaged", id="damaged"),
        pytest.param(stored(whole(9), keys=FOREIGN), "not written with the keys", id="of another installation"),
        pytest.param(b"precious", "not a snapshot", id="of somebody else"),
    ],
)
def test_an_unusable_snapshot_is_logged_once_and_the_next_newest_used(
    storages: tuple[MemoryStorage, MemoryStorage], content: bytes, words: str
) -> None:
    storages[0].content, storages[1].content = content, stored(whole(5))
    with capture_logs() as logs:
        found = newest_stored(storages, KEYS.data)

    assert found
    assert (found.storage, found.snapshot.revision) == ("redis", 5)
    assert [(log["event"], log["storage"]) for log in logs] == [("last_known_good_refused", "file")]
    assert words in logs[0]["error"]


def test_a_failing_storage_is_logged_once_and_the_other_used(
    storages: tuple[MemoryStorage, MemoryStorage],
) -> None:
    storages[0].content, storages[1].error = stored(whole(5)), "Redis is away"
    with capture_logs() as logs:
        found = newest_stored(storages, KEYS.data)

    assert found
    assert found.storage == "file"
    assert [(log["storage"], log["error"]) for log in logs] == [("redis", "Redis is away")]
