"""Room on the disk is kept while there is enough, given up when the disk is full, and taken again."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gatekeeper_grpc.embedded.disk_reserve import RESERVED_BYTES, WAL_SEGMENT_BYTES, DiskReserve

pytestmark = pytest.mark.promise("B5")

ENOUGH = RESERVED_BYTES + WAL_SEGMENT_BYTES


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how much of the disk is free."""
    return lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=size))


def allocated(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def test_the_room_is_really_taken_and_given_up(tmp_path: Path, free: Callable[[int], None]) -> None:
    reserve = DiskReserve(tmp_path)
    free(ENOUGH)
    assert reserve.take()
    assert allocated(tmp_path) >= RESERVED_BYTES

    free(WAL_SEGMENT_BYTES)
    reserve.give_up_if_full()
    assert allocated(tmp_path) >= RESERVED_BYTES

    free(WAL_SEGMENT_BYTES - 1)
    reserve.give_up_if_full()
    assert allocated(tmp_path) == 0


def test_a_copy_without_blocks_is_given_them(tmp_path: Path, free: Callable[[int], None]) -> None:
    free(ENOUGH)
    DiskReserve(tmp_path).take()
    (file,) = tmp_path.iterdir()
    os.truncate(file, 0)
    os.truncate(file, RESERVED_BYTES)
    assert allocated(tmp_path) == 0

    assert DiskReserve(tmp_path).take()
    assert allocated(tmp_path) >= RESERVED_BYTES


def test_a_disk_is_full_until_the_reserve_is_back(tmp_path: Path, free: Callable[[int], None]) -> None:
    reserve = DiskReserve(tmp_path)
    free(ENOUGH)
    reserve.take()
    free(WAL_SEGMENT_BYTES)
    assert not reserve.is_disk_full()

    free(0)
    assert reserve.is_disk_full()
    reserve.give_up_if_full()
    free(ENOUGH - 1)
    assert reserve.is_disk_full()

    free(ENOUGH)
    assert not reserve.is_disk_full()
    assert allocated(tmp_path) >= RESERVED_BYTES


def test_a_disk_that_never_had_room_is_used_to_the_last_segment(tmp_path: Path, free: Callable[[int], None]) -> None:
    reserve = DiskReserve(tmp_path)
    free(WAL_SEGMENT_BYTES)
    assert not reserve.take()
    assert not reserve.is_disk_full()
    assert allocated(tmp_path) == 0

    free(WAL_SEGMENT_BYTES - 1)
    assert reserve.is_disk_full()
