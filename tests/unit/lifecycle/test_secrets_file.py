"""Generated secrets: only the owner can read them, and they are stored atomically."""

import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.config.settings import SettingsError
from gatekeeper_grpc.lifecycle.secrets_file import new_key_ring, read_secret, store_secret, stored_secret


@pytest.fixture(autouse=True)
def careless_umask() -> Iterator[None]:
    """A umask that would let everybody read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_can_read_a_secret_whatever_the_umask(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"

    store_secret(data_dir, "token", "s3cret")

    assert (mode(data_dir), mode(data_dir / "token")) == (0o700, 0o600)


def test_a_stored_secret_is_read_back(tmp_path: Path) -> None:
    store_secret(tmp_path, "token", "s3cret")

    assert read_secret(tmp_path, "token") == "s3cret"


def test_there_is_no_secret_before_one_is_stored(tmp_path: Path) -> None:
    assert read_secret(tmp_path / "nowhere", "token") is None


def test_a_secret_is_generated_once(tmp_path: Path) -> None:
    made = iter(["first", "second"])

    assert [stored_secret(tmp_path, "token", lambda: next(made)) for _ in range(2)] == ["first", "first"]


def test_a_write_that_fails_leaves_the_old_secret_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_secret(tmp_path, "token", "old")

    def disk_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(OSError, match="No space"):
            store_secret(tmp_path, "token", "new")

    assert read_secret(tmp_path, "token") == "old"
    store_secret(tmp_path, "token", "newer")  # what the failed attempt left behind is no obstacle
    assert read_secret(tmp_path, "token") == "newer"


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / ".token.new").symlink_to(victim)

    store_secret(tmp_path, "token", "s3cret")

    assert (victim.read_text(), mode(tmp_path / "token")) == ("untouched", 0o600)


def test_generated_keys_are_a_ring_of_one_unique_key_of_256_bits() -> None:
    rings = [new_key_ring() for _ in range(2)]

    assert [len(KeyRing.parse(ring).keys) for ring in rings] == [1, 1]
    assert rings[0] != rings[1]


@pytest.mark.parametrize("use", [read_secret, partial(store_secret, secret="s3cret")], ids=["read", "store"])
def test_a_data_directory_that_cannot_be_used_is_named(tmp_path: Path, use: Callable[..., object]) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SettingsError, match=r"^GATEKEEPER_DATA_DIR: '.*/file' must be a directory"):
        use(tmp_path / "file", name="token")
