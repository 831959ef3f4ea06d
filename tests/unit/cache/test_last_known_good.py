"""Keeping the last-known-good snapshot: soon, not too often, never at anybody's cost; and finding it again."""

import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.cache.last_known_good import SnapshotKeeper, newest_kept
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.snapshot_file import SnapshotFile
from gatekeeper_grpc.cache.snapshot_format import HEAD_BYTES, SnapshotHeader, decode, encode, read_stamp
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot, SnapshotDelta
from tests.conftest import KEYS
from tests.unit.cache.test_snapshot_cache import Clock

HERE, ELSEWHERE = UUID(int=1), UUID(int=2)
NOW = datetime.now(UTC)


class Memory:
    """A place in memory that takes a second of work to write to, and can fail."""

    def __init__(self, clock: Clock, name: str = "memory") -> None:
        self.name = name
        self.kept = b""
        self.writes = 0
        self.error: str = ""
        self.is_claimed_elsewhere = False
        self._clock = clock

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        self._fail_if_told()
        yield not self.is_claimed_elsewhere

    def head(self, size: int) -> bytes:
        return self.read()[:size]

    def read(self) -> bytes:
        self._fail_if_told()
        return self.kept

    def write(self, pieces: Iterable[bytes]) -> None:
        self._clock.advance(1.0)
        self.kept = b"".join(pieces)
        self.writes += 1

    def stamp(self) -> SnapshotHeader:
        return read_stamp(self.kept[:HEAD_BYTES], KEYS.data)

    def _fail_if_told(self) -> None:
        if self.error:
            raise Unavailable(self.error)


class House:
    """A keeper, what it looks at, where it writes to, and its time."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.cache = SnapshotCache(stale_after_s=1.0, max_waiters=1, clock=self.clock)
        self.place = Memory(self.clock)
        self.pauses: list[float] = []
        self.keeper = self.another_keeper()

    def another_keeper(self) -> SnapshotKeeper:
        return SnapshotKeeper(self.cache, self.place, KEYS.data, clock=self.clock, pause=self.pauses.append)

    def serve(self, snapshot: Snapshot) -> None:
        assert self.cache.publish(snapshot, confirmed_at=self.clock())

    def look_after(self, seconds: float) -> int:
        """Let time pass and the keeper look; returns how often it has written in all."""
        self.clock.advance(seconds)
        self.keeper.look()
        return self.place.writes


@pytest.fixture
def house() -> House:
    return House()


def whole(revision: int, installation_id: UUID = HERE) -> Snapshot:
    return Snapshot.build(installation_id=installation_id, revision=revision)


def led(snapshot: Snapshot, revision: int) -> Snapshot:
    return snapshot.after(SnapshotDelta(revision=revision))


def kept(snapshot: Snapshot, *, minutes_ago: float = 0.0, keys: DataKeys = KEYS.data) -> bytes:
    stamp = SnapshotHeader.of(snapshot, confirmed_time=NOW - timedelta(minutes=minutes_ago))
    return b"".join(encode(snapshot, stamp, keys))


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_nothing_is_kept_before_there_is_anything(house: House) -> None:
    assert house.look_after(0.0) == 0


def test_the_first_snapshot_is_kept_at_once_and_then_nothing_until_it_changes(house: House) -> None:
    house.serve(whole(5))

    assert [house.look_after(60.0) for _ in range(3)] == [1, 1, 1]
    assert (house.place.stamp().installation_id, house.place.stamp().revision) == (HERE, 5)


def test_what_is_kept_says_when_the_database_last_confirmed_it(house: House) -> None:
    house.serve(whole(5))
    house.look_after(30.0)

    assert 29 < (datetime.now(UTC) - house.place.stamp().confirmed_time).total_seconds() < 40


def test_after_quiet_a_change_is_kept_at_once(house: House) -> None:
    house.serve(whole(5))
    house.look_after(0.0)
    house.clock.advance(60.0)
    house.serve(led(house.cache.current(), 6))

    assert house.look_after(0.0) == 2
    assert house.place.stamp().revision == 6


def writes_while_changes_go_on(house: House, make: Callable[[Snapshot, int], Snapshot]) -> int:
    """Change something a hundred times, once a second; each write takes a second."""
    house.serve(whole(1))
    for revision in range(2, 102):
        house.serve(make(house.cache.current(), revision))
        house.look_after(1.0)
    return house.place.writes


def test_while_changes_go_on_a_tenth_of_the_time_is_spent_writing(house: House) -> None:
    assert 9 <= writes_while_changes_go_on(house, led) <= 13


def test_the_last_of_many_changes_is_kept_too(house: House) -> None:
    writes_while_changes_go_on(house, led)
    house.look_after(10.0)

    assert house.place.stamp().revision == 101


def test_what_was_loaded_whole_is_kept_at_once_for_somebody_may_have_been_erased(house: House) -> None:
    assert writes_while_changes_go_on(house, lambda _, revision: whole(revision)) == 100


def test_evaluation_gets_the_interpreter_between_two_pieces(house: House) -> None:
    house.serve(whole(5))
    house.look_after(0.0)

    assert len(house.pauses) >= 3
    assert min(house.pauses) >= 0.001


def test_every_hour_it_is_kept_anew_so_that_it_tells_when_it_was_last_good(house: House) -> None:
    house.serve(whole(5))
    house.look_after(0.0)
    old = house.place.stamp()
    house.place.kept = kept(house.cache.current(), minutes_ago=61)
    house.keeper._kept = SnapshotHeader.of(house.cache.current(), confirmed_time=NOW - timedelta(minutes=61))
    house.serve(house.cache.current())

    assert house.look_after(0.0) == 2
    assert house.place.stamp().confirmed_time >= old.confirmed_time


def test_what_no_database_has_confirmed_is_not_kept(house: House) -> None:
    house.cache.publish(whole(5), confirmed_at=-math.inf)

    assert house.look_after(60.0) == 0


def test_of_several_who_share_a_place_the_first_writes(house: House) -> None:
    house.serve(whole(5))
    house.look_after(0.0)
    house.another_keeper().look()

    assert house.place.writes == 1


def test_a_newer_revision_is_not_replaced_by_an_older_one(house: House) -> None:
    house.place.kept = kept(whole(6))
    house.serve(whole(5))
    house.look_after(0.0)

    assert house.place.stamp().revision == 6


def test_a_newer_revision_that_is_kept_is_told_of_until_that_has_worked(house: House) -> None:
    house.place.kept = kept(whole(6))
    told: list[int] = []

    def heed(revision: int) -> None:
        told.append(revision)
        if len(told) == 1:
            raise Unavailable("the database is away")

    house.keeper._heed_newer = heed
    house.serve(whole(5))
    with pytest.raises(Unavailable):
        house.look_after(0.0)
    for _ in range(3):
        house.look_after(1.0)

    assert told == [6, 6]


def test_what_is_of_another_installation_is_replaced_whatever_its_revision(house: House) -> None:
    house.place.kept = kept(whole(9, ELSEWHERE))
    house.serve(whole(5))
    house.look_after(0.0)

    assert (house.place.stamp().installation_id, house.place.stamp().revision) == (HERE, 5)


@pytest.mark.parametrize("damage", [lambda it: it[:-9] + b"damaged!!", lambda it: it[:30]], ids=["altered", "cut off"])
def test_what_is_damaged_is_replaced_by_a_whole_one_and_told_of(house: House, damage: Callable[[bytes], bytes]) -> None:
    house.place.kept = damage(kept(whole(5)))
    house.serve(whole(5))
    with capture_logs() as logs:
        house.look_after(0.0)

    assert house.place.stamp().revision == 5
    assert [log["event"] for log in logs] == ["last_known_good_replaced", "snapshot_kept"]


def test_what_somebody_else_wrote_is_left_alone_and_told_of_once(house: House) -> None:
    house.place.kept = b"precious"
    house.serve(whole(5))
    with capture_logs() as logs:
        for _ in range(3):
            house.look_after(5.0)

    assert house.place.kept == b"precious"
    assert [(log["event"], log["place"]) for log in logs] == [("snapshot_not_kept", "memory")]
    assert "left alone" in logs[0]["error"]


def test_while_somebody_else_writes_it_is_tried_again(house: House) -> None:
    house.serve(whole(5))
    house.place.is_claimed_elsewhere = True
    busy = house.look_after(0.25)
    house.place.is_claimed_elsewhere = False

    assert (busy, house.look_after(0.25)) == (0, 1)


def test_a_place_that_fails_is_one_line_when_it_begins_and_one_when_it_ends(house: House) -> None:
    house.serve(whole(5))
    house.place.error = "the disk is full"
    with capture_logs() as logs:
        for _ in range(5):
            house.look_after(2.0)
        assert house.keeper.has_failed
        house.place.error = ""
        house.look_after(2.0)
        house.look_after(2.0)

    assert [log["event"] for log in logs] == ["snapshot_not_kept", "snapshot_kept", "snapshot_kept_again"]
    assert house.place.stamp().revision == 5
    assert not house.keeper.has_failed


def test_what_is_not_kept_yet_is_kept_when_it_ends(house: House) -> None:
    house.serve(whole(5))
    house.keeper.start()
    house.keeper.close()
    house.serve(led(house.cache.current(), 6))
    house.keeper.close()

    assert house.place.stamp().revision == 6


# --- finding it again -------------------------------------------------------------------------------------------------


@pytest.fixture
def places() -> tuple[Memory, Memory]:
    return (Memory(Clock(), "file"), Memory(Clock(), "redis"))


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
    places: tuple[Memory, Memory],
    contents: tuple[Snapshot | None, Snapshot | None],
    expected: tuple[str, int] | None,
) -> None:
    for place, snapshot in zip(places, contents, strict=True):
        place.kept = kept(snapshot) if snapshot else b""

    found = newest_kept(places, KEYS.data)

    assert (found and (found.place, found.snapshot.revision)) == expected


def damaged(snapshot: Snapshot) -> bytes:
    return kept(snapshot)[:-9] + b"damaged!!"


FOREIGN = DataKeys(KeyRing.parse("elsewhere:" + "e" * 32))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(damaged(whole(9)), "damaged", id="damaged"),
        pytest.param(kept(whole(9), keys=FOREIGN), "not written with the keys", id="of another installation"),
        pytest.param(b"precious", "not a snapshot", id="of somebody else"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line_and_the_next_newest_taken(
    places: tuple[Memory, Memory], content: bytes, words: str
) -> None:
    places[0].kept, places[1].kept = content, kept(whole(5))
    with capture_logs() as logs:
        found = newest_kept(places, KEYS.data)

    assert found
    assert (found.place, found.snapshot.revision) == ("redis", 5)
    assert [(log["event"], log["place"]) for log in logs] == [("last_known_good_refused", "file")]
    assert words in logs[0]["error"]


def test_a_place_that_fails_is_told_in_one_line_and_the_other_taken(places: tuple[Memory, Memory]) -> None:
    places[0].kept, places[1].error = kept(whole(5)), "Redis is away"
    with capture_logs() as logs:
        found = newest_kept(places, KEYS.data)

    assert found
    assert found.place == "file"
    assert [(log["place"], log["error"]) for log in logs] == [("redis", "Redis is away")]


def test_a_file_is_a_place(tmp_path: Path) -> None:
    house = House()
    file = SnapshotFile(tmp_path / "snapshot")
    house.serve(whole(5))
    SnapshotKeeper(house.cache, file, KEYS.data).look()

    found = newest_kept([file], KEYS.data)

    assert found
    assert (found.place, found.stamp.revision, found.snapshot.installation_id) == ("file", 5, HERE)


# --- several processes ------------------------------------------------------------------------------------------------


def keep_revisions(path: Path, first: int, last: int) -> None:
    """Keep one revision after the other, as a worker does."""
    cache = SnapshotCache(stale_after_s=1.0, max_waiters=1)
    keeper = SnapshotKeeper(cache, SnapshotFile(path), KEYS.data, pause=lambda _: None)
    for revision in range(first, last + 1):
        cache.publish(whole(revision), confirmed_at=time.monotonic())
        while keeper._kept is None or keeper._kept.revision != revision:
            keeper.look()


def test_workers_who_share_a_file_never_tear_it_and_the_newest_revision_wins(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=keep_revisions, args=(path, first, 40 + first)) for first in (1, 2, 3)]
    for worker in workers:
        worker.start()
    seen = []
    while any(worker.is_alive() for worker in workers):
        if content := SnapshotFile(path).read():
            stamp, _ = decode(content, KEYS.data)
            seen.append(stamp.revision)
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert seen == sorted(seen)
    assert decode(path.read_bytes(), KEYS.data)[0].revision == 43
