"""`gatekeeper segments`, `users` and `erase-user` against a real server."""

import json

import pytest
import yaml

from tests.support.clients import Installation
from tests.support.commands import Run, Stdin


def test_a_segment_with_conditions_is_made_changed_used_and_deleted(as_editor: Run, run: Run) -> None:
    conditions = ["--condition", "plan in pro 'big team'", "--condition", "age not greater_than 40"]
    created = as_editor("segments", "create", "seg.one", *conditions)
    used = as_editor("flags", "create", "seg.flag", "--segment", "seg.one=true", "--enabled")
    inside = run("evaluate", "bob", "--flag", "seg.flag", "--attr", "plan=big team", "--attr", "age=30", "-o", "name")
    outside = run("evaluate", "bob", "--flag", "seg.flag", "--attr", "plan=pro", "--attr", "age=41", "-o", "name")
    in_use = as_editor("segments", "delete", "seg.one", "--yes")
    cleared = as_editor("flags", "update", "seg.flag", "--clear", "segment_targets")
    updated = as_editor("segments", "update", "seg.one", "--match", "any", "--clear", "conditions", "-o", "json")
    deleted = as_editor("segments", "delete", "seg.one", "--yes")

    codes = [said.code for said in (created, used, in_use, cleared, updated, deleted)]
    assert codes == [0, 0, 7, 0, 0, 0]
    assert "conditions:  plan in pro 'big team'; age not greater_than 40\n" in created.printed
    assert (inside.printed, outside.printed) == ("seg.flag\n", "")
    assert "next: take it from these flags first" in in_use.complaint
    segment = json.loads(updated.printed)
    assert (segment["match"], segment["conditions"]) == ("SEGMENT_MATCH_ANY", [])


@pytest.mark.parametrize(
    ("condition", "complaint"),
    [
        ("plan", "must be ATTRIBUTE [not] OPERATOR [VALUE...]"),
        ("", "must be ATTRIBUTE [not] OPERATOR [VALUE...]"),
        ("plan is pro", "must be ATTRIBUTE [not] OPERATOR [VALUE...]"),
        ("plan in 'pro", "No closing quotation"),
        ("n equals 9007199254740993", "beyond 2^53"),
        ("plan in", "(INVALID_ARGUMENT)"),
        ("plan equals null", "(INVALID_ARGUMENT)"),
    ],
)
def test_what_is_no_condition_is_wrong_usage(as_editor: Run, condition: str, complaint: str) -> None:
    said = as_editor("segments", "create", "seg.bad", "--condition", condition)

    assert said.code == 2
    assert complaint in said.complaint


@pytest.mark.parametrize("condition", ["a equals 5", "a equals true", "a equals '\"5\"'", "a exists", "a equals 1.5"])
def test_a_condition_is_shown_as_it_is_given(as_editor: Run, condition: str) -> None:
    as_editor("segments", "create", "seg.shown")

    said = as_editor("segments", "update", "seg.shown", "--condition", condition)

    assert f"conditions:  {condition}\n" in said.printed


def test_members_are_added_listed_and_removed(as_editor: Run) -> None:
    as_editor("segments", "create", "seg.named")

    added = as_editor("segments", "members", "add", "seg.named", "ann", "bob", "ann")
    imported = as_editor("segments", "members", "import", "seg.named", "-", stdin="bob\ncy\n")
    removed = as_editor("segments", "members", "remove", "seg.named", "bob")
    listed = as_editor("segments", "members", "list", "seg.named")
    document = as_editor("segments", "members", "list", "seg.named", "--limit", "1", "-o", "yaml")

    assert [said.printed.split(",")[0] for said in (added, imported, removed)] == [
        "2 were added",
        "1 were added",
        "1 were removed",
    ]
    assert listed.printed == "USER\nann\ncy\n"
    assert yaml.safe_load(document.printed) == {"user_ids": ["ann"]}
    assert "members:     2\n" in as_editor("segments", "get", "seg.named").printed


def test_members_of_a_segment_that_does_not_exist_are_not_found(as_editor: Run) -> None:
    said = as_editor("segments", "members", "add", "no-such", "ann")

    assert (said.code, "segments list` shows all segments" in said.complaint) == (3, True)


def test_an_update_of_a_user_leaves_the_other_attributes(as_editor: Run) -> None:
    created = as_editor("users", "create", "ulla", "--attr", "plan=pro", "--attr", "age=30", "--attr", "vip=true")
    updated = as_editor("users", "update", "ulla", "--attr", "plan=team", "--remove-attr", "vip", "-o", "json")
    twice = as_editor("users", "create", "ulla")
    nothing = as_editor("users", "update", "ulla")
    both = as_editor("users", "update", "ulla", "--attr", "age=1", "--remove-attr", "age")
    listed = as_editor("users", "list", "--attr", "plan=team", "-o", "name")

    assert [said.code for said in (created, updated, twice, nothing, both)] == [0, 0, 4, 2, 2]
    assert json.loads(updated.printed)["attributes"] == {"plan": "team", "age": 30.0}
    assert listed.printed == "ulla\n"
    assert as_editor("users", "delete", "ulla", "--yes").printed == "ulla is deleted\n"
    assert as_editor("users", "get", "ulla").code == 3


def test_an_erasure_asks_and_leaves_nothing(as_admin: Run, as_editor: Run, installation: Installation) -> None:
    as_editor("users", "create", "canary-person", "--attr", "plan=pro")
    as_editor("flags", "create", "erase.flag")
    as_editor("flags", "targets", "add", "erase.flag", "canary-person", "--value", "true")

    exported = as_admin("users", "export", "canary-person")
    as_yaml = as_admin("users", "export", "canary-person", "-o", "yaml")
    unasked = as_admin("erase-user", "canary-person")
    checked = as_admin("erase-user", "canary-person", "--dry-run")
    denied = as_editor("erase-user", "canary-person", "--yes")
    erased = as_admin("erase-user", "canary-person", stdin=Stdin("y\n", is_terminal=True))
    again = as_admin("erase-user", "canary-person", "--yes")

    assert [said.code for said in (exported, unasked, checked, denied, erased, again)] == [0, 2, 0, 5, 0, 3]
    parts = [json.loads(line) for line in exported.printed.splitlines()]
    assert parts[0]["user"]["user"]["attributes"] == {"plan": "pro"}
    assert [document["revision"] for document in yaml.safe_load_all(as_yaml.printed)] == [
        part["revision"] for part in parts
    ]
    assert checked.printed.startswith("canary-person would be erased: 1 targets, ")
    assert erased.printed.startswith("canary-person is erased: 1 targets, ")
    assert as_editor("flags", "targets", "list", "erase.flag", "-o", "name").printed == ""
