"""Storing the current snapshot: soon, rarely enough, and never at the cost of evaluation."""

import math
import multiprocessing
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.cache.last_known_good import newest_stored
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.snapshot_file import SnapshotFile
from gatekeeper_grpc.cache.snapshot_format import SnapshotHeader, decode
from gatekeeper_grpc.cache.snapshot_writer import SnapshotWriter
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.scheduler import Scheduler
from tests.support.clocks import Clock
from tests.support.servers import KEYS
from tests.support.snapshots import ELSEWHERE, HERE, NOW, MemoryStorage, changed, stored, whole


class House:
    """A writer with its cache, storage and clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.cache = SnapshotCache(stale_after_s=1.0, max_waiters=1, clock=self.clock)
        self.storage = MemoryStorage(self.clock)
        self.pauses: list[float] = []
        self.writer = self.another_writer()

    def another_writer(self) -> SnapshotWriter:
        return SnapshotWriter(self.cache, self.storage, KEYS.data, clock=self.clock, pause=self.pauses.append)

    def serve(self, snapshot: Snapshot) -> None:
        assert self.cache.publish(snapshot, confirmed_at=self.clock())

    def check_after(self, seconds: float) -> int:
        """Let time pass and the writer check; return its number of writes so far."""
        self.clock.advance(seconds)
        self.writer.write_if_due()
        return self.storage.writes


@pytest.fixture
def house() -> House:
    return House()


def test_nothing_is_kept_before_there_is_anything(house: House) -> None:
    assert house.check_after(0.0) == 0


def test_the_first_snapshot_is_written_at_once_and_only_once(house: House) -> None:
    house.serve(whole(5))

    assert [house.check_after(60.0) for _ in range(3)] == [1, 1, 1]
    assert (house.storage.header().installation_id, house.storage.header().revision) == (HERE, 5)


def test_what_is_kept_says_when_the_database_last_confirmed_it(house: House) -> None:
    house.serve(whole(5))
    house.check_after(30.0)

    assert 29 < (datetime.now(UTC) - house.storage.header().confirmed_time).total_seconds() < 40


def test_after_quiet_a_change_is_kept_at_once(house: House) -> None:
    house.serve(whole(5))
    house.check_after(0.0)
    house.clock.advance(60.0)
    house.serve(changed(house.cache.current(), 6))

    assert house.check_after(0.0) == 2
    assert house.storage.header().revision == 6


def writes_while_changes_go_on(house: House, make: Callable[[Snapshot, int], Snapshot]) -> int:
    """Change something a hundred times, once a second; each write takes a second."""
    house.serve(whole(1))
    for revision in range(2, 102):
        house.serve(make(house.cache.current(), revision))
        house.check_after(1.0)
    return house.storage.writes


def test_while_changes_go_on_a_tenth_of_the_time_is_spent_writing(house: House) -> None:
    assert 9 <= writes_while_changes_go_on(house, changed) <= 13


def test_the_last_of_many_changes_is_kept_too(house: House) -> None:
    writes_while_changes_go_on(house, changed)
    house.check_after(10.0)

    assert house.storage.header().revision == 101


def test_a_snapshot_loaded_whole_is_written_at_once(house: House) -> None:
    assert writes_while_changes_go_on(house, lambda _, revision: whole(revision)) == 100


def test_evaluation_gets_the_interpreter_between_two_pieces(house: House) -> None:
    house.serve(whole(5))
    house.check_after(0.0)

    assert len(house.pauses) >= 3
    assert min(house.pauses) >= 0.001


def test_every_hour_the_confirmation_time_is_renewed(house: House) -> None:
    house.serve(whole(5))
    house.check_after(0.0)
    old = house.storage.header()
    house.storage.content = stored(house.cache.current(), minutes_ago=61)
    house.writer._written = SnapshotHeader.of(house.cache.current(), confirmed_time=NOW - timedelta(minutes=61))
    house.serve(house.cache.current())

    assert house.check_after(0.0) == 2
    assert house.storage.header().confirmed_time >= old.confirmed_time


def test_what_no_database_has_confirmed_is_not_kept(house: House) -> None:
    house.cache.publish(whole(5), confirmed_at=-math.inf)

    assert house.check_after(60.0) == 0


def test_of_several_writers_of_one_storage_the_first_writes(house: House) -> None:
    house.serve(whole(5))
    house.check_after(0.0)
    house.another_writer().write_if_due()

    assert house.storage.writes == 1


def test_a_newer_revision_is_not_replaced_by_an_older_one(house: House) -> None:
    house.storage.content = stored(whole(6))
    house.serve(whole(5))
    house.check_after(0.0)

    assert house.storage.header().revision == 6


def test_a_newer_revision_that_is_kept_is_told_of_until_that_has_worked(house: House) -> None:
    house.storage.content = stored(whole(6))
    told: list[int] = []

    def on_newer(revision: int) -> None:
        told.append(revision)
        if len(told) == 1:
            raise Unavailable("the database is away")

    house.writer._on_newer = on_newer
    house.serve(whole(5))
    with pytest.raises(Unavailable):
        house.check_after(0.0)
    for _ in range(3):
        house.check_after(1.0)

    assert told == [6, 6]


def test_what_is_of_another_installation_is_replaced_whatever_its_revision(house: House) -> None:
    house.storage.content = stored(whole(9, ELSEWHERE))
    house.serve(whole(5))
    house.check_after(0.0)

    assert (house.storage.header().installation_id, house.storage.header().revision) == (HERE, 5)


@pytest.mark.parametrize("damage", [lambda it: it[:-9] + b"damaged!!", lambda it: it[:30]], ids=["altered", "cut off"])
def test_what_is_damaged_is_replaced_by_a_whole_one_and_told_of(house: House, damage: Callable[[bytes], bytes]) -> None:
    house.storage.content = damage(stored(whole(5)))
    house.serve(whole(5))
    with capture_logs() as logs:
        house.check_after(0.0)

    assert house.storage.header().revision == 5
    assert [log["event"] for log in logs] == ["last_known_good_replaced", "snapshot_written"]


def test_what_somebody_else_wrote_is_left_alone_and_told_of_once(house: House) -> None:
    house.storage.content = b"precious"
    house.serve(whole(5))
    with capture_logs() as logs:
        for _ in range(3):
            house.check_after(5.0)

    assert house.storage.content == b"precious"
    assert [(log["event"], log["storage"]) for log in logs] == [("snapshot_write_failed", "memory")]
    assert "left alone" in logs[0]["error"]


def test_while_somebody_else_writes_it_is_tried_again(house: House) -> None:
    house.serve(whole(5))
    house.storage.is_locked_elsewhere = True
    busy = house.check_after(0.25)
    house.storage.is_locked_elsewhere = False

    assert (busy, house.check_after(0.25)) == (0, 1)


def test_a_failing_storage_is_logged_once_and_its_recovery_too(house: House) -> None:
    house.serve(whole(5))
    house.storage.error = "the disk is full"
    with capture_logs() as logs:
        for _ in range(5):
            house.check_after(2.0)
        assert house.writer.has_failed
        house.storage.error = ""
        house.check_after(2.0)
        house.check_after(2.0)

    assert [log["event"] for log in logs] == ["snapshot_write_failed", "snapshot_written", "snapshot_write_recovered"]
    assert house.storage.header().revision == 5
    assert not house.writer.has_failed


def test_what_is_not_kept_yet_is_kept_when_it_ends(house: House) -> None:
    house.serve(whole(5))
    house.writer.start(scheduler := Scheduler())
    scheduler.start()
    house.writer.close()
    scheduler.close()
    house.serve(changed(house.cache.current(), 6))
    house.writer.close()

    assert house.storage.header().revision == 6


def test_a_snapshot_written_to_a_file_is_found_again(tmp_path: Path) -> None:
    house = House()
    file = SnapshotFile(tmp_path / "snapshot")
    house.serve(whole(5))
    SnapshotWriter(house.cache, file, KEYS.data).write_if_due()

    found = newest_stored([file], KEYS.data)

    assert found
    assert (found.storage, found.header.revision, found.snapshot.installation_id) == ("file", 5, HERE)


# --- several processes ------------------------------------------------------------------------------------------------


def keep_revisions(path: Path, first: int, last: int) -> None:
    """Write one revision after the other, as a worker does."""
    cache = SnapshotCache(stale_after_s=1.0, max_waiters=1)
    writer = SnapshotWriter(cache, SnapshotFile(path), KEYS.data, pause=lambda _: None)
    for revision in range(first, last + 1):
        cache.publish(whole(revision), confirmed_at=time.monotonic())
        while writer._written is None or writer._written.revision != revision:
            writer.write_if_due()


def test_workers_share_a_file_and_the_newest_revision_wins(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=keep_revisions, args=(path, first, 40 + first)) for first in (1, 2, 3)]
    for worker in workers:
        worker.start()
    seen = []
    while any(worker.is_alive() for worker in workers):
        if content := SnapshotFile(path).read():
            header, _ = decode(content, KEYS.data)
            seen.append(header.revision)
    for worker in workers:
        worker.join()

    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert seen == sorted(seen)
    assert decode(path.read_bytes(), KEYS.data)[0].revision == 43
