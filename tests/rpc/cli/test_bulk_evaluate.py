"""`gatekeeper bulk-evaluate` against a real server: formats, interruption, resuming, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from gatekeeper_grpc.cli.client import bulk_evaluate, bulk_rows
from tests.support.clients import Installation
from tests.support.commands import Run

USERS = 2_500


@pytest.fixture
def flag(as_editor: Run, installation: Installation) -> str:
    """A flag that is true for users of the plan pro."""
    if as_editor("flags", "get", "bulk.flag").code:
        as_editor("segments", "create", "bulk.pro", "--condition", "plan equals pro")
        as_editor("flags", "create", "bulk.flag", "--enabled", "--segment", "bulk.pro=true")
    return "bulk.flag"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users.csv"
    file.write_text("user_id,plan,age\n" + "".join(f"user-{n},{'pro' if n % 2 else ''},{n}\n" for n in range(USERS)))
    return file


def interrupt(patch: pytest.MonkeyPatch, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """End a run while it writes a batch of results, after so many batches."""
    whole, taken = bulk_rows.writer, []

    def writer(file: Any, *rest: Any, **more: Any) -> Any:
        write = whole(file, *rest, **more)

        def partly(results: Any) -> None:
            taken.append(results)
            if len(taken) > after:
                write(list(results)[:3])
                raise error
            write(results)

        return partly

    patch.setattr(bulk_evaluate, "writer", writer)


def test_rows_of_csv_become_rows_with_a_column_for_each_flag(run: Run, flag: str, users: Path, tmp_path: Path) -> None:
    said = run("bulk-evaluate", str(users), "--to", str(tmp_path / "out.csv"), "--flag", flag)

    rows = [*csv.DictReader((tmp_path / "out.csv").read_text().splitlines())]
    assert said.code == 0
    assert said.printed.startswith(f"evaluated {USERS} users at revision ")
    assert [row["user_id"] for row in rows] == [f"user-{n}" for n in range(USERS)]
    assert [row[flag] for row in rows[:4]] == ["false", "true", "false", "true"]
    assert [*tmp_path.glob("*.progress")] == []


def test_lines_of_json_become_lines_and_a_bad_user_gets_an_error(run: Run, flag: str, tmp_path: Path) -> None:
    source, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"user_id": "zoë", "attributes": {"plan": "pro"}}, {"user_id": 300 * "x"}, {"user_id": "al"}]
    source.write_text("\n".join(map(json.dumps, lines)))

    said = run("bulk-evaluate", str(source), "--to", str(results))

    first, bad, last = map(json.loads, results.read_text().splitlines())
    assert (first["user_id"], first["flags"][flag], last["flags"][flag]) == ("zoë", True, False)
    assert bad["error"]["reason"] == "INVALID_ARGUMENT"
    assert (said.code, "1 users could not be evaluated" in said.complaint) == (1, True)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_interrupted_run_goes_on_and_has_each_user_once(run: Run, flag: str, users: Path, form: str) -> None:
    results, whole = (users.with_name(f"{name}.{form}") for name in ("results", "whole"))
    command = ("bulk-evaluate", str(users), "--flag", flag, "--to")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=1)
        interrupted = run(*command, str(results))
    kept = json.loads(results.with_name(f"{results.name}.progress").read_text())

    resumed = run(*command, str(results))
    run(*command, str(whole))

    assert (interrupted.code, resumed.code, kept["users"]) == (130, 0, 1_000)
    assert "1000 users have results: the same command goes on\n" in interrupted.complaint
    assert results.read_text() == whole.read_text()


def test_results_of_two_revisions_are_not_mixed_unless_accepted(
    run: Run, as_editor: Run, flag: str, users: Path
) -> None:
    command = ("bulk-evaluate", str(users), "--flag", flag, "--to", str(users.with_name("out.jsonl")))
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=2)
        run(*command)
    as_editor("flags", "create", "bulk.other")

    refused = run(*command)
    accepted = run(*command, "--accept-revision-change")

    assert [said.code for said in (refused, accepted)] == [7, 0]
    assert "\nnext: remove the results to begin again, or add --accept-revision-change\n" in refused.complaint
    assert len(users.with_name("out.jsonl").read_text().splitlines()) == USERS


def test_columns_of_other_flags_are_not_appended(run: Run, as_editor: Run, flag: str, users: Path) -> None:
    command = ("bulk-evaluate", str(users), "--to", str(users.with_name("out.csv")))
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=2)
        run(*command)
    as_editor("flags", "create", "bulk.column")

    said = run(*command, "--accept-revision-change")

    assert (said.code, "their columns differ" in said.complaint) == (7, True)


def test_a_file_that_is_not_of_an_interrupted_run_is_left_alone(run: Run, flag: str, users: Path) -> None:
    results = users.with_name("out.csv")
    results.write_text("precious")

    said = run("bulk-evaluate", str(users), "--to", str(results))

    assert (said.code, results.read_text()) == (2, "precious")


def test_a_run_with_other_flags_is_not_gone_on_with(run: Run, flag: str, users: Path) -> None:
    command = ("bulk-evaluate", str(users), "--to", str(users.with_name("out.csv")))
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=1)
        run(*command)

    said = run(*command, "--flag", flag)

    assert (said.code, "is of a run with another file or other flags" in said.complaint) == (2, True)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("in.csv", "id\nann\n", "in.csv, line 2: must have a user_id"),
        ("in.jsonl", '{"user_id": "ann"}\nno json\n', "in.jsonl, line 2: must have a user_id"),
        ("in.jsonl", '{"user_id": "ann", "plan": "pro"}\n', "in.jsonl, line 1: must have a user_id"),
        ("in.jsonl", '{"user_id": "ann", "attributes": {"n": 9007199254740993}}\n', "line 1: must have"),
        ("in.jsonl", '{"user_id": 7}\n', "in.jsonl, line 1: must have a user_id"),
    ],
)
def test_a_line_that_is_no_user_is_named(run: Run, tmp_path: Path, name: str, content: str, complaint: str) -> None:
    (tmp_path / name).write_text(content)

    said = run("bulk-evaluate", str(tmp_path / name), "--to", str(tmp_path / "out"))

    assert (said.code, complaint in said.complaint) == (2, True)


def test_a_run_that_cannot_begin_leaves_nothing(run: Run, users: Path) -> None:
    results = users.with_name("out.csv")

    unknown = run("bulk-evaluate", str(users), "--to", str(results), "--flag", "no.such")
    nobody = run("bulk-evaluate", str(users), "--to", str(results), "--server", "127.0.0.1:1")

    assert [said.code for said in (unknown, nobody)] == [3, 6]
    assert sorted(file.name for file in users.parent.iterdir() if file.is_file()) == ["users.csv"]
