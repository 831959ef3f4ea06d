"""Kept logins: private, shared by commands in several shells, and refreshed by one of them."""

import fcntl
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

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
