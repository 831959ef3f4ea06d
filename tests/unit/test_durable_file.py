"""Files that are replaced as a whole. A writer that is killed half-way: tests/unit/cache/test_snapshot_file.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper_grpc.durable_file import draft_of, replace_file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the content "old"."""
    path = tmp_path / "file"
    replace_file(path, [b"o", b"ld"])
    return path


def test_a_file_is_replaced_and_no_draft_stays(path: Path) -> None:
    replace_file(path, [b"new"])

    assert (path.read_bytes(), list(path.parent.iterdir())) == (b"new", [path])


def test_only_the_owner_can_read_a_file_unless_a_mode_is_given(path: Path) -> None:
    archive = path.with_name("archive")
    replace_file(archive, [], mode=0o640)

    assert [file.stat().st_mode & 0o777 for file in (path, archive)] == [0o600, 0o640]


def test_after_a_failure_the_old_content_is_there_and_no_draft(path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield b"new"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, failing())

    assert (path.read_bytes(), list(path.parent.iterdir())) == (b"old", [path])


def test_a_draft_of_a_killed_writer_is_replaced_and_a_link_not_followed(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"untouched")
    draft_of(path).symlink_to(victim)

    replace_file(path, [b"new"])

    assert (path.read_bytes(), victim.read_bytes(), path.is_symlink()) == (b"new", b"untouched", False)


def test_content_and_rename_are_synced_to_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))

    replace_file(path, [b"new"])

    assert synced == [draft_of(path), path.parent]
