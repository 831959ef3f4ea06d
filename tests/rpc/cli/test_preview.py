"""`gatekeeper flags set-rollout KEY PERCENT --preview FILE`: shows who gains and loses, asks, and then changes."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gatekeeper_grpc.cli.client import access, preview
from tests.support.clients import Installation
from tests.support.commands import Run, Said, Stdin
from tests.support.servers import access_token

KEY, USERS = "ramp.one", 2_500


@pytest.fixture(autouse=True)
def flag(as_editor: Run) -> Iterator[None]:
    """A flag that nobody has."""
    as_editor("flags", "create", KEY, "--enabled")
    yield
    as_editor("flags", "delete", KEY, "--yes")


@pytest.fixture
def users(tmp_path: Path) -> str:
    file = tmp_path / "users.csv"
    file.write_text("user_id,plan\n" + "".join(f"user-{number},\n" for number in range(USERS)))
    return str(file)


def rollout(run: Run) -> int:
    percentage: int = json.loads(run("flags", "get", KEY, "-o", "json").printed)["rollout_percentage"]
    return percentage


def lines(said: Said) -> list[list[str]]:
    return [line.split() for line in said.printed.splitlines()]


def test_it_shows_counts_and_a_sample_and_changes_after_a_yes(as_editor: Run, users: str) -> None:
    said = as_editor("flags", "set-rollout", KEY, "100", "--preview", users, stdin=Stdin("y\n", is_terminal=True))

    assert (said.code, rollout(as_editor)) == (0, 100)
    summary, header, row, _, sample_header, first, *_ = said.printed.splitlines()
    assert summary.startswith(f"{KEY} at revision ")
    assert summary.endswith(": 2,500 of 2,500 users gain it, 0 lose it")
    assert (header.split(), row.split()) == (
        ["BEFORE", "AFTER", "USERS"],
        ["false", "(static)", "true", "(static)", "2,500"],
    )
    assert (sample_header.split(), first.split()[0]) == (["USER", "BEFORE", "AFTER"], "user-0")
    assert "2,500 of 2,500 users gain it, 0 lose it?" in said.complaint
    assert "rollout:     100%" in said.printed


def test_without_a_yes_nothing_is_changed_and_it_says_so(as_editor: Run, users: str) -> None:
    command = ("flags", "set-rollout", KEY, "100", "--preview", users)

    no_terminal = as_editor(*command)
    denied = as_editor(*command, stdin=Stdin("n\n", is_terminal=True))
    dry = as_editor(*command, "--dry-run", "--yes")

    assert [said.code for said in (no_terminal, denied, dry)] == [2, 1, 0]
    assert "so nothing was changed: add --yes" in no_terminal.complaint
    assert "nothing was changed" in denied.complaint
    assert dry.printed.endswith("\nnothing was changed\n")
    assert all("2,500 of 2,500 users gain it" in said.printed for said in (no_terminal, denied, dry))
    assert rollout(as_editor) == 0
    assert as_editor(*command, "--yes").code == 0
    assert rollout(as_editor) == 100


def test_a_viewer_may_preview_and_not_change(as_viewer: Run, as_editor: Run, users: str) -> None:
    command = ("flags", "set-rollout", KEY, "50", "--preview", users)

    dry, refused = as_viewer(*command, "--dry-run"), as_viewer(*command, "--yes")

    assert (dry.code, refused.code, rollout(as_editor)) == (0, 5, 0)


def test_json_has_everything_in_one_document(as_editor: Run, users: str) -> None:
    command = ("flags", "set-rollout", KEY, "25", "--preview", users, "-o", "json")

    dry = as_editor(*command, "--dry-run", "--preview-rows", "changed")
    done = as_editor(*command, "--yes")
    refused = as_editor(*command)

    shown, made = json.loads(dry.printed), json.loads(done.printed)
    totals = shown["preview"]["totals"]
    assert (int(totals["evaluated_count"]), shown["flag"]) == (USERS, None)
    assert int(totals["gained_count"]) == len(shown["preview"]["rows"]) > len(totals["sample"]) == 20
    assert shown["preview"]["after"]["rollout_percentage"] == made["flag"]["rollout_percentage"] == 25
    assert (refused.code, json.loads(refused.printed)["flag"]) == (2, None)


@pytest.mark.parametrize(
    ("command", "gained"),
    [
        (("update", "--rollout", "100"), 2),
        (("update", "--default", "true"), 2),
        (("disable",), 0),
        (("enable",), 0),
    ],
    ids=["update", "default", "disable", "enable"],
)
def test_other_changes_can_be_previewed_too(
    as_editor: Run, tmp_path: Path, command: tuple[str, ...], gained: int
) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text('{"user_id": "a"}\n{"user_id": "b", "attributes": {"plan": "pro"}}\n')
    name, *options = command

    said = as_editor("flags", name, KEY, *options, "--preview", str(file), "--dry-run")

    assert f": {gained} of 2 users gain it, 0 lose it\n" in said.printed


def test_users_may_come_on_standard_input(as_editor: Run) -> None:
    command = ("flags", "set-rollout", KEY, "100", "--preview", "-")
    source = '{"user_id": "a"}\n{"user_id": "b"}\n'

    asked, done = as_editor(*command, stdin=source), as_editor(*command, "--yes", stdin=source)

    assert (asked.code, done.code) == (2, 0)
    assert "2 of 2 users gain it" in done.printed


def test_a_change_that_is_refused_is_refused_before_users_are_read(as_editor: Run, tmp_path: Path) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_text("no user\n")

    refused = as_editor("flags", "set-rollout", "ramp.unknown", "5", "--preview", str(file), "--yes")
    broken = as_editor("flags", "set-rollout", KEY, "5", "--preview", str(file), "--yes")

    assert (refused.code, broken.code, rollout(as_editor)) == (3, 2, 0)
    assert "broken.jsonl, line 1: must have a user_id" in broken.complaint


def test_users_that_cannot_be_evaluated_are_counted_and_named(as_editor: Run, tmp_path: Path) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps({"user_id": 300 * "x"}) + '\n{"user_id": "b"}\n')
    command = ("flags", "set-rollout", KEY, "100", "--preview", str(file), "--dry-run")

    told, named = as_editor(*command), as_editor(*command, "--preview-rows", "changed")

    assert "1 users could not be evaluated; --preview-rows changed says why" in told.printed
    assert "256 bytes" in named.printed


def test_a_change_between_preview_and_yes_is_a_conflict(
    as_editor: Run, users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_and_agree(*_arguments: object, **_options: object) -> bool:
        as_editor("flags", "update", KEY, "--owner", "another")
        return True

    monkeypatch.setattr("click.confirm", change_and_agree)

    said = as_editor("flags", "set-rollout", KEY, "100", "--preview", users, stdin=Stdin("", is_terminal=True))

    assert (said.code, rollout(as_editor)) == (4, 0)
    assert "(ETAG_MISMATCH)" in said.complaint


def test_users_who_were_taken_are_not_left_out_by_a_second_login(
    as_editor: Run, users: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(server: Any, call: Callable[..., Any]) -> Any:
        return access.call_admin(server, lambda admin, how: [call(admin, how) for _ in range(2)][-1])

    monkeypatch.setattr(preview, "call_admin", twice)

    said = as_editor("flags", "set-rollout", KEY, "100", "--preview", users, "--yes")

    assert (said.code, rollout(as_editor)) == (5, 0)
    assert "the access token expired during the preview" in said.complaint


def test_a_terminal_shows_the_progress_and_is_asked(installation: Installation, users: str) -> None:
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "GATEKEEPER_SERVER": f"127.0.0.1:{installation.server.port}",
        "GATEKEEPER_TOKEN": access_token(installation.dsn, "editor"),
    }
    command = [sys.executable, "-m", "gatekeeper_grpc", "flags", "set-rollout", KEY, "100", "--preview", users]
    os.write(ours, b"y\n")

    done = subprocess.run(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=60, check=False
    )
    shown = os.read(ours, 1 << 16).decode()

    assert done.returncode == 0, shown
    assert "2,500 users, " in shown
    assert "gain it, 0 lose it? [y/N]" in shown
    assert b"rollout:     100%" in done.stdout
