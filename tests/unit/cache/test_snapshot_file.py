"""The file of the last-known-good snapshot: never torn, readable by its owner only, one writer at a time."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gatekeeper_grpc.cache import snapshot_file
from gatekeeper_grpc.cache.snapshot_file import SnapshotFile
from gatekeeper_grpc.cache.snapshot_format import SnapshotRefused
from gatekeeper_grpc.domain.errors import Unavailable

OLD, NEW = b"o" * 100_000, b"n" * 200_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "snapshot"


def pieces(content: bytes) -> Iterator[bytes]:
    return (content[at : at + 1_000] for at in range(0, len(content), 1_000))


def write(path: Path, content: bytes) -> None:
    file = SnapshotFile(path)
    with file.locked() as is_ours:
        assert is_ours
        file.write(pieces(content))


def test_before_anything_is_written_there_is_nothing(path: Path) -> None:
    assert (SnapshotFile(path).read(10), SnapshotFile(path).read()) == (b"", b"")


def test_what_is_written_is_read_again_and_replaces_what_was_there(path: Path) -> None:
    write(path, OLD)
    write(path, NEW)

    assert SnapshotFile(path).read() == NEW
    assert SnapshotFile(path).read(10) == NEW[:10]
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".snapshot.lock", "snapshot"]


def test_only_the_owner_can_read_any_of_it(path: Path) -> None:
    old_mask = os.umask(0)
    try:
        write(path, OLD)
    finally:
        os.umask(old_mask)

    assert {entry.name: entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()} == {
        ".snapshot.lock": 0o600,
        "snapshot": 0o600,
    }
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_while_one_writes_nobody_else_does(path: Path) -> None:
    with SnapshotFile(path).locked() as first, SnapshotFile(path).locked() as second:
        assert (first, second) == (True, False)
    with SnapshotFile(path).locked() as again:
        assert again


def test_a_write_that_fails_half_way_leaves_what_was_there(path: Path) -> None:
    write(path, OLD)

    def failing() -> Iterator[bytes]:
        yield NEW
        raise OSError(28, "No space left on device")

    with pytest.raises(Unavailable, match=rf"{path}: No space left on device"), SnapshotFile(path).locked():
        SnapshotFile(path).write(failing())

    assert SnapshotFile(path).read() == OLD
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".snapshot.lock", "snapshot"]


def test_a_folder_that_cannot_be_is_unavailable_and_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    file = SnapshotFile(tmp_path / "file" / "snapshot")

    with pytest.raises(Unavailable, match="file/snapshot"), file.locked():
        pass
    with pytest.raises(Unavailable, match="file/snapshot"):
        file.read()


def test_a_reader_never_sees_a_torn_file_while_it_is_replaced(path: Path) -> None:
    write(path, OLD)
    done = threading.Event()

    def replace() -> None:
        for number in range(200):
            write(path, (OLD, NEW)[number % 2])
        done.set()

    with ThreadPoolExecutor(1) as writer:
        writing = writer.submit(replace)
        seen = set()
        while not done.is_set():
            seen.add(SnapshotFile(path).read())
        writing.result()

    assert seen <= {OLD, NEW}


def grown(path: Path, size: int) -> None:
    """Let a file grow, without blocks on the disk."""
    os.truncate(path, size)


def test_a_file_that_has_grown_is_refused_without_being_read(path: Path) -> None:
    write(path, OLD)
    grown(path, 3 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SnapshotRefused, match=rf"{path}: it has 3,221,225,472 bytes, and no .* than 1,073,741,824"):
        SnapshotFile(path).read()

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert SnapshotFile(path).read(10) == OLD[:10]


def test_twin_a_file_within_the_bound_is_read(path: Path) -> None:
    write(path, OLD)
    grown(path, 1 << 20)

    assert len(SnapshotFile(path).read()) == 1 << 20


def test_a_snapshot_that_is_too_large_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, OLD)
    monkeypatch.setattr(snapshot_file, "MAX_SNAPSHOT_BYTES", len(NEW) - 1)

    with pytest.raises(Unavailable, match="too large to be kept"):
        write(path, NEW)

    assert SnapshotFile(path).read() == OLD


WRITE_AND_HANG = """
import sys, time
from pathlib import Path
from gatekeeper_grpc.cache.snapshot_file import SnapshotFile

def pieces():
    yield b"torn" * 10_000
    print("half way", flush=True)
    time.sleep(60)

file = SnapshotFile(Path(sys.argv[1]))
with file.locked():
    file.write(pieces())
"""


def killed_half_way(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITE_AND_HANG, path], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"half way\n"
        process.send_signal(signal.SIGKILL)


def test_a_writer_killed_half_way_leaves_the_old_content(path: Path) -> None:
    write(path, OLD)
    killed_half_way(path)

    assert SnapshotFile(path).read() == OLD
    assert path.with_name(".snapshot.new").exists()
    with SnapshotFile(path).locked() as is_ours:
        assert is_ours
    assert not path.with_name(".snapshot.new").exists()


def test_twin_without_the_new_file_a_killed_writer_tears_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, OLD)
    without_draft = "from gatekeeper_grpc import durable_file\ndurable_file.draft_of = lambda path: path\nif True:"
    torn = WRITE_AND_HANG.replace("with file.locked():", without_draft)
    monkeypatch.setattr(sys.modules[__name__], "WRITE_AND_HANG", torn)
    killed_half_way(path)

    assert SnapshotFile(path).read() == b"torn" * 10_000
