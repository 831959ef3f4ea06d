"""Kept logins: private, shared by commands in several shells, and refreshed by one of them."""

import fcntl
import json
import os
import pwd
import stat
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gatekeeper_grpc.cli.client.failures import Failure
from gatekeeper_grpc.cli.client.sessions import Session, Sessions

SERVER = "127.0.0.1:50051"
SESSION = Session(username="admin", access_token="first", expire_time_s=0, refresh_token="spend me once")
SHELLS = 4


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "gatekeeper")


def test_a_login_is_kept_for_its_server_alone_until_it_is_forgotten(sessions: Sessions) -> None:
    sessions.keep(SERVER, SESSION)
    sessions.keep("db:1", replace(SESSION, username="ann"))

    assert sessions.find(SERVER) == SESSION

    sessions.forget(SERVER)

    assert (sessions.find(SERVER), sessions.find("db:1")) == (None, replace(SESSION, username="ann"))


def test_files_are_readable_by_their_owner_alone(sessions: Sessions, tmp_path: Path) -> None:
    sessions.keep(SERVER, SESSION)

    folder = tmp_path / "gatekeeper"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "sessions.json").stat().st_mode) == 0o600


def refreshes_of_several_shells(folder: Path) -> list[str]:
    """Which refresh tokens are spent if several commands find the same expired login at once."""
    spent: list[str] = []
    all_there = threading.Barrier(SHELLS)
    second_came = threading.Event()

    def refresh(current: Session) -> Session:
        spent.append(current.refresh_token)
        if len(spent) > 1:
            second_came.set()
        second_came.wait(0.2)  # Long enough for another one to come in, if nothing keeps it out.
        return replace(current, access_token=f"after {len(spent)}", refresh_token=f"refreshed {len(spent)}")

    def command(_: int) -> Session | None:
        all_there.wait()
        return Sessions(folder).replace(SERVER, SESSION, refresh)

    Sessions(folder).keep(SERVER, SESSION)
    with ThreadPoolExecutor(SHELLS) as shells:
        got = list(shells.map(command, range(SHELLS)))
    assert all(got)
    return spent


def test_an_expired_login_is_refreshed_by_one_command(tmp_path: Path) -> None:
    assert refreshes_of_several_shells(tmp_path / "gatekeeper") == [SESSION.refresh_token]


def test_twin_without_the_lock_a_refresh_token_is_spent_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(Sessions, "_write", lambda *_: None)  # Its files are in each other's way without the lock.
    (tmp_path / "gatekeeper").mkdir()
    kept = {
        SERVER: {"username": "admin", "access_token": "first", "expire_time_s": 0, "refresh_token": "spend me once"}
    }
    (tmp_path / "gatekeeper" / "sessions.json").write_text(json.dumps(kept))

    assert len(refreshes_of_several_shells(tmp_path / "gatekeeper")) > 1


def test_a_login_that_has_ended_is_forgotten(sessions: Sessions) -> None:
    sessions.keep(SERVER, SESSION)

    assert sessions.replace(SERVER, SESSION, lambda _: None) is None
    assert sessions.find(SERVER) is None


def test_a_damaged_file_is_named(sessions: Sessions, tmp_path: Path) -> None:
    sessions.keep(SERVER, SESSION)
    (tmp_path / "gatekeeper" / "sessions.json").write_text("[")

    with pytest.raises(Failure, match=r"sessions\.json is damaged: remove it"):
        sessions.find(SERVER)


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(Failure, match="set XDG_CONFIG_HOME"):
        Sessions(tmp_path / "file" / "gatekeeper").keep(SERVER, SESSION)


@pytest.mark.parametrize("home", ["", "relative", "/nonexistent"])
def test_without_a_home_in_the_environment_the_accounts_home_is_used(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    account = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd((*account[:5], str(tmp_path), account[6])))

    assert Sessions.of_user()._folder == tmp_path / ".config" / "gatekeeper"


def test_an_account_without_any_home_keeps_logins_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))

    Sessions.of_user().keep(SERVER, SESSION)

    assert stat.S_IMODE((tmp_path / f"gatekeeper-{os.geteuid()}").stat().st_mode) == 0o700


def test_a_folder_of_another_user_is_refused(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions.keep(SERVER, SESSION)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)

    with pytest.raises(Failure, match="belongs to another user"):
        sessions.keep(SERVER, SESSION)


def test_xdg_config_home_is_followed_if_it_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))

    assert Sessions.of_user()._folder == tmp_path / "xdg" / "gatekeeper"

    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")

    assert Sessions.of_user()._folder == tmp_path / ".config" / "gatekeeper"
