"""Files of the user: in a private folder of the account, whatever HOME says."""

import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest

from gatekeeper_grpc.cli.client.failures import Failure
from gatekeeper_grpc.cli.client.own_files import OwnFile, own_folder


def file_in(folder: Path) -> OwnFile:
    return OwnFile(folder, "things", kind="things", instead="GATEKEEPER_THING")


def keep(folder: Path) -> None:
    file = file_in(folder)
    with file.locked():
        file.write({"a": 1})


def test_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "gatekeeper"

    keep(folder)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert modes == {"things.json": 0o600, "things.lock": 0o600}


def test_what_is_kept_is_read_and_what_is_absent_is_none(tmp_path: Path) -> None:
    assert file_in(tmp_path).read(dict) is None

    keep(tmp_path)

    assert file_in(tmp_path).read(dict) == {"a": 1}


@pytest.mark.parametrize("content", ["[", "null", "3"])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "things.json").write_text(content)

    with pytest.raises(Failure, match=r"things\.json is damaged: remove it"):
        file_in(tmp_path).read(dict)


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(Failure, match="set XDG_CONFIG_HOME, or GATEKEEPER_THING"):
        keep(tmp_path / "file" / "gatekeeper")


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)

    with pytest.raises(Failure, match="belongs to another user"):
        keep(tmp_path)


@pytest.mark.parametrize("home", ["", "relative", "/nonexistent"])
def test_without_a_home_in_the_environment_the_accounts_home_is_used(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    account = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd((*account[:5], str(tmp_path), account[6])))

    assert own_folder() == tmp_path / ".config" / "gatekeeper"


def test_an_account_without_any_home_keeps_logins_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))

    keep(own_folder())

    assert stat.S_IMODE((tmp_path / f"gatekeeper-{os.geteuid()}").stat().st_mode) == 0o700


def test_xdg_config_home_is_followed_if_it_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))

    assert own_folder() == tmp_path / "xdg" / "gatekeeper"

    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")

    assert own_folder() == tmp_path / ".config" / "gatekeeper"
