"""`gatekeeper flags` against a real server: what it changes, what it prints, how it fails."""

import json
import uuid
from pathlib import Path

import pytest
import yaml

from gatekeeper_grpc.cli.client import access, output
from tests.support.clients import Installation
from tests.support.commands import Run, Stdin
from tests.support.lost_calls import Lost


def test_an_update_changes_what_is_named_and_nothing_else(as_editor: Run) -> None:
    as_editor("flags", "create", "up.one", "--owner", "search", "--tag", "a", "--tag", "b", "--rollout", "5")

    said = as_editor("flags", "update", "up.one", "--description", "new", "--tag", "c", "-o", "json")
    cleared = as_editor("flags", "update", "up.one", "--clear", "tags", "-o", "json")

    flag = json.loads(said.printed)
    assert (flag["owner"], flag["description"], flag["tags"], flag["rollout_percentage"]) == ("search", "new", ["c"], 5)
    assert json.loads(cleared.printed)["tags"] == []


def test_an_update_of_nothing_is_wrong_usage(as_editor: Run) -> None:
    said = as_editor("flags", "update", "up.none")

    assert (said.code, said.complaint.splitlines()[0]) == (2, "gatekeeper: nothing to change: name a field")


def test_a_change_of_another_state_than_the_named_one_is_a_conflict(as_editor: Run) -> None:
    created = json.loads(as_editor("flags", "create", "match.one", "-o", "json").printed)

    done = as_editor("flags", "enable", "match.one", "--if-match", created["etag"])
    refused = as_editor("flags", "set-rollout", "match.one", "7", "--if-match", created["etag"])
    not_deleted = as_editor("flags", "delete", "match.one", "--yes", "--if-match", created["etag"])

    assert [said.code for said in (done, refused, not_deleted)] == [0, 4, 4]
    assert "next: read it again, and repeat the change with --if-match and its present etag\n" in refused.complaint


def test_a_deletion_needs_a_yes_from_the_terminal_or_the_option(as_editor: Run) -> None:
    as_editor("flags", "create", "gone.one")

    without_terminal = as_editor("flags", "delete", "gone.one")
    denied = as_editor("flags", "delete", "gone.one", stdin=Stdin("n\n", is_terminal=True))
    checked = as_editor("flags", "delete", "gone.one", "--dry-run")
    there = as_editor("flags", "get", "gone.one")
    deleted = as_editor("flags", "delete", "gone.one", stdin=Stdin("y\n", is_terminal=True))
    gone = as_editor("flags", "get", "gone.one")

    codes = [said.code for said in (without_terminal, denied, checked, there, deleted, gone)]
    assert codes == [2, 1, 0, 0, 0, 3]
    assert "standard input is no terminal to ask, so nothing was changed: add --yes" in without_terminal.complaint
    assert "gatekeeper: nothing was changed\n" in denied.complaint
    assert (checked.printed, deleted.printed) == ("gone.one would be deleted\n", "gone.one is deleted\n")


def test_history_says_who_changed_what_and_why_after_deletion_too(as_editor: Run) -> None:
    as_editor("flags", "create", "past.one")
    as_editor("flags", "set-rollout", "past.one", "30", "--reason", "no errors")
    as_editor("flags", "targets", "add", "past.one", "zoe", "--value", "true")
    as_editor("flags", "delete", "past.one", "--yes")

    lines = as_editor("flags", "history", "past.one").printed.splitlines()
    newest = as_editor("flags", "history", "past.one", "--limit", "1", "-o", "json")

    actions = [line.split()[3] for line in lines[1:]]
    assert actions == ["DeleteFlag", "ImportTargets", "UpdateFlag", "CreateFlag"]
    (update,) = [line for line in lines if "UpdateFlag" in line]
    assert "admin:editor#" in update
    assert update.endswith("rollout_percentage: 0 -> 30  no errors")
    assert [entry["action"] for entry in json.loads(newest.printed)["audit_entries"]] == ["DeleteFlag"]


def test_usage_of_a_flag_that_nobody_asked_for_says_never(as_editor: Run) -> None:
    as_editor("flags", "create", "idle.one")

    said = as_editor("flags", "usage", "idle.one")
    document = json.loads(as_editor("flags", "usage", "idle.one", "--step", "day", "-o", "json").printed)

    assert said.printed.splitlines()[:3] == [
        "START  ASKED_FOR  VALUE  REASON  DECISIONS",
        "last named: never",
        "last asked for with all: never",
    ]
    assert document["counted_since"]


def test_targets_are_added_moved_listed_and_removed(as_editor: Run) -> None:
    as_editor("flags", "create", "aim.one")

    added = as_editor("flags", "targets", "add", "aim.one", "ann", "bob", "--value", "true")
    moved = as_editor("flags", "targets", "add", "aim.one", "bob", "cy", "--value", "false", "--dry-run")
    removed = as_editor("flags", "targets", "remove", "aim.one", "ann", "dan")
    listed = as_editor("flags", "targets", "list", "aim.one")

    assert added.printed.startswith("2 were added, at revision ")
    assert moved.printed.startswith("1 would be added, 1 would be moved, at revision ")
    assert removed.printed.startswith("1 were removed, at revision ")
    assert listed.printed == "USER  VALUE\nbob   true\n"


def test_an_import_takes_each_line_of_a_file_or_of_standard_input_once(as_editor: Run, tmp_path: Path) -> None:
    as_editor("flags", "create", "aim.many")
    file = tmp_path / "users.txt"
    file.write_text("".join(f"user-{number}\r\n" for number in range(10_001)) + "user-1\n\n")

    of_file = as_editor("flags", "targets", "import", "aim.many", str(file), "--value", "on", "-o", "json")
    of_stdin = as_editor("flags", "targets", "import", "aim.many", "-", "--value", "on", stdin="user-7\nzoë\n")
    names = as_editor("flags", "targets", "list", "aim.many", "-o", "name")

    answer = json.loads(of_file.printed)
    assert (answer["added_count"], answer["applied_messages"]) == ("10001", "2")
    assert of_stdin.printed.startswith("1 were added")
    assert len(names.printed.splitlines()) == 10_002


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"", "has no user id"), (b"\n\n", "has no user id"), (b"\xff\n", "must be UTF-8")]
)
def test_a_file_without_user_ids_is_refused(as_editor: Run, tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "users.txt"
    file.write_bytes(content)

    said = as_editor("flags", "targets", "import", "aim.many", str(file), "--value", "true")

    assert (said.code, said.complaint.splitlines()[0]) == (2, f"gatekeeper: {file}: {complaint}")


def test_a_segment_of_a_flag_that_does_not_exist_is_named(as_editor: Run) -> None:
    said = as_editor("flags", "create", "seg.one", "--segment", "no-such=true")
    misspelt = as_editor("flags", "create", "seg.one", "--segment", "no-such=maybe")

    assert (said.code, misspelt.code) == (3, 2)
    assert "(SEGMENT_NOT_FOUND)\nnext: " in said.complaint
    assert "'maybe' must be true or false" in misspelt.complaint


def test_every_format_has_the_same_flag(as_editor: Run) -> None:
    as_editor("flags", "create", "form.one", "--owner", "search")

    said = {kind: as_editor("flags", "list", "--prefix", "form.", "-o", kind).printed for kind in FORMATS}

    assert said["name"] == "form.one\n"
    assert "search" not in said["table"]
    assert "search" in said["wide"]
    assert yaml.safe_load(said["yaml"]) == json.loads(said["json"])
    assert json.loads(said["json"])["flags"][0]["owner"] == "search"


FORMATS = ("table", "wide", "name", "json", "yaml")


def test_a_line_is_cut_to_fit_a_terminal_and_in_a_pipe_it_is_not(
    as_editor: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_editor("flags", "create", "long.one", "--tag", 60 * "x", "--tag", 30 * "y")
    in_pipe = as_editor("flags", "list", "--prefix", "long.").printed

    monkeypatch.setattr(output, "_limit", lambda _format: 80)
    on_terminal = as_editor("flags", "list", "--prefix", "long.").printed

    assert max(map(len, in_pipe.splitlines())) > 80
    assert max(map(len, on_terminal.splitlines())) == 80
    assert on_terminal.endswith("…\n")


def test_verbose_adds_what_the_server_sent_for_programs(as_viewer: Run) -> None:
    quiet = as_viewer("flags", "create", "no.right")
    said = as_viewer("flags", "create", "no.right", "--verbose")

    assert len(quiet.complaint.splitlines()) == 2
    lines = said.complaint.splitlines()
    assert lines[:2] == quiet.complaint.splitlines()
    assert {"status: PERMISSION_DENIED", "reason: PERMISSION_DENIED", "required_role: EDITOR"} <= set(lines)
    assert lines[-1].startswith("call id: ")


class Flaky:
    """Loses the answer of the first calls."""

    def __init__(self, call: object, failures: int) -> None:
        self._call = call
        self._failures = failures
        self.request_ids: list[str] = []

    def __call__(self, request: object, **how: object) -> object:
        self.request_ids.append(request.request_id)  # type: ignore[attr-defined]
        answer = self._call(request, **how)  # type: ignore[operator]
        if len(self.request_ids) <= self._failures:
            raise Lost
        return answer


@pytest.mark.parametrize(("pauses_s", "code"), [((0.0, 0.0), 0), ((), 6)], ids=["repeated", "control: not repeated"])
def test_a_change_whose_answer_is_lost_is_repeated_and_made_once(
    as_editor: Run, installation: Installation, monkeypatch: pytest.MonkeyPatch, pauses_s: tuple[float, ...], code: int
) -> None:
    key, flaky = f"retry.{uuid.uuid4()}", []
    call_admin = access.call_admin

    def lossy(server: object, call: object, **how: object) -> object:
        def with_loss(admin: object, options: object) -> object:
            flaky.append(Flaky(admin.CreateFlag, failures=2))  # type: ignore[attr-defined]
            admin.CreateFlag = flaky[0]  # type: ignore[attr-defined]
            return call(admin, options)  # type: ignore[operator]

        return call_admin(server, with_loss, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(access, "call_admin", lossy)
    monkeypatch.setattr(access, "_PAUSES_S", pauses_s)
    said = as_editor("flags", "create", key)
    monkeypatch.undo()

    assert said.code == code
    assert len(set(flaky[0].request_ids)) == 1
    count = installation.query("SELECT count(*) FROM audit_log WHERE resource_key = %s", key)
    assert count == [(1,)]
