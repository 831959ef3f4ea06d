"""`gatekeeper export`, `diff` and `apply` against a real server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.cli.audit import audit
from gatekeeper_grpc.cli.client import configuration
from gatekeeper_grpc.cli.client.access import change
from tests.support.access_events import events
from tests.support.clients import TIMEOUT_S, Installation, created, installed, new_key, send, targets_of
from tests.support.commands import Run, Said, Stdin
from tests.support.servers import settings_for_tests

PEOPLE = [f"user-{number}" for number in range(10_000)]


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    """An installation of this module's own: it is wiped."""
    with installed(postgres) as installation:
        yield installation


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a file, and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def decisions(installation: Installation) -> list[dict[str, bool]]:
    """What each of `PEOPLE` gets of every flag."""
    stub = EvaluationServiceStub(installation.channels[None])
    contexts = [EvaluationContext(user_id=user_id) for user_id in PEOPLE]
    for number, context in enumerate(contexts):
        context.attributes["age"] = number % 90
    requests = [BulkEvaluateFlagsRequest(contexts=contexts[at : at + 1_000]) for at in range(0, len(contexts), 1_000)]
    answers = list(stub.BulkEvaluateFlags(iter(requests), timeout=TIMEOUT_S))
    keys = next(answer.header.flag_keys for answer in answers if answer.HasField("header"))
    results = [result.evaluation for answer in answers for result in answer.batch.results]
    return [dict(zip(keys, result.values, strict=True)) for result in results]


def wipe(as_editor: Run) -> None:
    """Delete all flags and segments, by an empty file."""
    said = as_editor("apply", "-f", "-", "--prune", "--yes", stdin="flags: []\nsegments: []\n")
    assert said.code == 0


def furnish(as_editor: Run, tmp_path: Path) -> None:
    """Make flags and segments of all kinds, with texts that look like something else."""
    (tmp_path / "some.txt").write_text("".join(f"{user_id}\n" for user_id in PEOPLE[::7]))
    (tmp_path / "others.txt").write_text("".join(f"{user_id}\n" for user_id in PEOPLE[1::7]))
    commands = (
        ("segments", "create", "old", "--condition", "age greater_than 60", "--description", "on"),
        ("segments", "create", "named", "--match", "any", "--condition", 'code in "1e3" "2020-01-01" no true 5'),
        ("segments", "members", "import", "named", str(tmp_path / "some.txt")),
        (
            "flags",
            "create",
            "1e3",
            "--rollout",
            "30",
            "--enabled",
            "--owner",
            "no",
            "--tag",
            "2020-01-01",
            "--tag",
            "~",
        ),
        (
            "flags",
            "create",
            "aimed",
            "--enabled",
            "--segment",
            "old=true",
            "--segment",
            "named=false",
            "--rollout",
            "50",
        ),
        ("flags", "create", "off", "--default", "true", "--description", "line one\nline\ttwo: # é \u2028 \x7f 😀"),
        ("flags", "targets", "import", "1e3", str(tmp_path / "some.txt"), "--value", "true"),
        ("flags", "targets", "import", "1e3", str(tmp_path / "others.txt"), "--value", "false"),
    )
    for command in commands:
        assert as_editor(*command).code == 0, command


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_export_wipe_and_apply_give_10_000_users_the_same(
    as_editor: Run, installation: Installation, tmp_path: Path, form: str
) -> None:
    wipe(as_editor)
    furnish(as_editor, tmp_path)
    before, file = decisions(installation), tmp_path / f"all.{form}"

    assert as_editor("export", "--to", str(file), "-o", form).code == 0
    wipe(as_editor)
    assert decisions(installation) != before
    applied = as_editor("apply", "-f", str(file))

    assert applied.code == 0, applied.complaint
    assert decisions(installation) == before
    assert as_editor("export", "-o", form).printed == file.read_text(encoding="utf-8")


def test_applying_a_file_twice_changes_nothing(as_editor: Run, installation: Installation, tmp_path: Path) -> None:
    furnish_once = as_editor("flags", "create", new_key(), "--rollout", "30")
    assert furnish_once.code == 0
    file = tmp_path / "all.yaml"
    as_editor("export", "--to", str(file))
    revision = installation.revision()

    said = as_editor("apply", "-f", str(file), "--prune")

    assert (said.code, said.printed) == (0, "nothing to change\n")
    assert installation.revision() == revision
    assert as_editor("diff", "-f", str(file), "--exit-code").code == 0


BAD = {
    "a value": (
        "flags:\n- key: a\n- key: b\n  rollout_percentage: 101\n",
        4,
        "flags[1].rollout_percentage must be 0 to 100",
    ),
    "a type": ("flags:\n- key: a\n  description: 1e3\n", 3, "flags[0].description must be text: put it in quotes"),
    "a number for a user": (
        "flags:\n- key: a\n  targets:\n  - value: true\n    user_ids:\n    - b\n    - 17\n",
        7,
        "flags[0].targets[0].user_ids[1] must be text",
    ),
    "an empty user": (
        'segments:\n- key: a\n  members:\n    user_ids:\n    - b\n    - ""\n',
        6,
        "segments[0].members.user_ids[1] must be 1 to 256 bytes",
    ),
    "an unknown field": ("flags:\n- key: a\n  rolout: 5\n", 3, "flags[0].rolout: there is no such field"),
    "an unknown section": ("flag:\n- key: a\n", 1, "'flag' is none of flags, segments, users"),
    "no key": ("flags:\n- owner: a\n", 2, "flags[0].key is missing"),
    "an unknown segment": (
        "flags:\n- key: a\n  segment_targets:\n  - segment_key: nowhere\n    value: true\n",
        4,
        "flags[0].segment_targets[0].segment_key: segment 'nowhere' does not exist",
    ),
    "an operator": (
        "segments:\n- key: a\n  conditions:\n  - attribute: b\n    operator: IN\n",
        5,
        "segments[0].conditions[0].operator must be one of CONDITION_OPERATOR_EQUALS",
    ),
    "a stale etag": (
        "flags:\n- key: present\n  etag: stale\n",
        2,
        "flags[0]: flag 'present' changed since it was read",
    ),
    "a name twice": ("flags:\n- key: a\n  key: b\n", 3, "'key' stands here twice"),
    "an alias": ("flags:\n- &a\n  key: a\n- *a\n", 2, "an alias is used"),
    "no YAML": ("flags:\n- key: [a\n", 3, "is no YAML or JSON"),
    "a large number": (
        "segments:\n- key: a\n  conditions:\n  - attribute: b\n    values: [9007199254740993]\n",
        5,
        "segments[0].conditions[0].values[0] is a number that doubles do not hold",
    ),
    "a stored user": (
        "users:\n- user_id: a\n- user_id: b\n  attributes: {plan: pro}\n- user_id: ''\n",
        5,
        "users[2].user_id is missing",
    ),
    "attributes of a user": (
        f"users:\n- user_id: a\n- user_id: b\n  attributes:\n    big: {'x' * 17_000}\n",
        4,
        "users[1].attributes must be at most 16 KiB",
    ),
    "an attribute of a user": (
        "users:\n- user_id: a\n  attributes:\n    plan: pro\n    id: 9007199254740993\n",
        5,
        "users[0].attributes.id is a number that doubles do not hold",
    ),
    "attributes that are a list": (
        "users:\n- user_id: a\n  attributes: [pro]\n",
        3,
        "users[0].attributes must be a mapping",
    ),
    "a user id that is a number": ("users:\n- user_id: 17\n", 2, "users[0].user_id must be text"),
    "JSON": (
        '{\n "flags": [\n  {"key": "a"},\n  {"key": "b",\n   "rollout_percentage": -1}\n ]\n}\n',
        5,
        "flags[1].rollout_percentage must be 0 to 100",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_entry_changes_nothing_and_is_named_with_its_line(
    as_editor: Run, installation: Installation, write: Callable[[str], str], name: str
) -> None:
    as_editor("flags", "create", "present")
    text, line, complaint = BAD[name]
    before = installation.revision()
    file = write(text)

    said = as_editor("apply", "-f", file)

    assert said.complaint.startswith(f"gatekeeper: {file}:{line}: ")
    assert complaint in said.complaint
    assert (said.code, installation.revision()) == ({"an unknown segment": 3, "a stale etag": 4}.get(name, 2), before)


FILE = """\
flags:
- key: present
  rollout_percentage: 25
  targets:
  - value: true
    user_ids: [ann, bob]
"""


def test_a_diff_shows_values_and_changes_nothing(
    as_editor: Run, installation: Installation, write: Callable[[str], str]
) -> None:
    wipe(as_editor)
    as_editor("flags", "create", "present", "--rollout", "5")
    file, before = write(FILE), installation.revision()

    said = as_editor("diff", "-f", file, "--exit-code")

    assert said.printed == "~ flag present\n    rollout_percentage: 5 -> 25\n~ targets of present: 2 added\n"
    assert (said.code, installation.revision()) == (1, before)
    assert as_editor("apply", "-f", file, "--dry-run").printed.endswith("2 changes would be made\n")
    assert json.loads(as_editor("diff", "-f", file, "-o", "json").printed)["changes"][0]["key"] == "present"
    assert installation.revision() == before


def test_nothing_absent_is_deleted_without_prune(
    as_editor: Run, installation: Installation, write: Callable[[str], str]
) -> None:
    wipe(as_editor)
    other = created(installation.admin).key
    as_editor("flags", "create", "present")
    as_editor("flags", "targets", "add", "present", "cy", "--value", "true")
    file = write(FILE)

    assert as_editor("apply", "-f", file).code == 0
    assert set(targets_of(installation.admin, "present")) == {"ann", "bob", "cy"}

    unasked = as_editor("apply", "-f", file, "--prune")
    assert (
        unasked.code,
        "standard input is no terminal to ask, so nothing was changed: add --yes" in unasked.complaint,
    ) == (2, True)
    refused = as_editor("apply", "-f", file, "--prune", stdin=Stdin("n\n", is_terminal=True))
    assert (refused.code, f"- flag {other}" in refused.complaint) == (1, True)
    assert as_editor("flags", "get", other).code == 0

    agreed = as_editor("apply", "-f", file, "--prune", stdin=Stdin("y\n", is_terminal=True))
    assert agreed.code == 0
    assert agreed.printed.startswith(f"~ targets of present: 1 removed\n- flag {other}\n2 changes made, at revision ")
    assert set(targets_of(installation.admin, "present")) == {"ann", "bob"}


def test_a_section_that_a_file_lacks_is_not_pruned(
    as_editor: Run, installation: Installation, write: Callable[[str], str]
) -> None:
    flag = created(installation.admin).key

    assert as_editor("apply", "-f", write("segments: []\n"), "--prune", "--yes").code == 0
    assert as_editor("flags", "get", flag).code == 0


def test_a_file_is_applied_only_to_what_was_seen(
    as_editor: Run, installation: Installation, write: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wipe(as_editor)
    as_editor("flags", "create", "present")

    def after_somebody_else(*arguments: object, **fields: object) -> object:
        installation.execute("UPDATE feature_flags SET revision = revision + 1000000 WHERE key = 'present'")
        return change(*arguments, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(f"{configuration.__name__}.change", after_somebody_else)
    said = as_editor("apply", "-f", write(FILE))

    assert (said.code, "flags[0]: flag 'present' changed since it was read" in said.complaint) == (4, True)


def test_lists_above_10_000_users_are_files_that_are_imported(
    as_editor: Run, installation: Installation, tmp_path: Path
) -> None:
    wipe(as_editor)
    key = created(installation.admin, enabled=True).key
    users = [f"{number:05}" for number in range(10_001)]
    for batch in (users[:10_000], users[10_000:]):
        send(installation.admin, "ImportTargets", pb.ImportTargetsRequest(flag_key=key, user_ids=batch, value=True))
    file = tmp_path / "all.yaml"

    assert as_editor("export").code == 2
    assert as_editor("export", "--to", str(file)).code == 0
    (target, _) = yaml.safe_load(file.read_text())["flags"][0]["targets"]
    assert target == {"value": True, "import_file": f"all.yaml.{key}.true.txt"}
    as_editor("flags", "delete", key, "--yes")
    assert as_editor("apply", "-f", str(file)).code == 0
    assert installation.query("SELECT count(*) FROM targeted_users") == [(10_001,)]


def test_a_list_that_is_too_long_says_what_to_do(as_editor: Run, write: Callable[[str], str]) -> None:
    users = ", ".join(f"u{number}" for number in range(10_001))

    said = as_editor("apply", "-f", write(f"flags:\n- key: a\n  targets:\n  - value: true\n    user_ids: [{users}]\n"))

    assert said.code == 2
    assert "user_ids has more than 10000 users: put them into a file, a line each, and name it as" in said.complaint


def test_a_file_above_3_mib_says_what_to_do(as_editor: Run, write: Callable[[str], str]) -> None:
    users = "".join(f"    - {number:0>250}x\n" for number in range(7_000))
    entries = "".join(f"- key: a{at}\n  members:\n    user_ids:\n{users}" for at in range(2))

    said = as_editor("apply", "-f", write(f"segments:\n{entries}"))

    assert (said.code, "divide it into several files" in said.complaint) == (2, True)


# --- Stored users -----------------------------------------------------------------------------------------------------


def populate(as_editor: Run, installation: Installation) -> list[str]:
    """Make a flag for a segment by stored attributes, and users who are in it and who are not; return their ids."""
    wipe(as_editor)
    as_editor("apply", "-f", "-", "--prune", "--yes", stdin="users: []\n")
    as_editor("segments", "create", "paying", "--condition", "plan in pro team", "--condition", "level greater_than 3")
    as_editor("flags", "create", "aimed", "--enabled", "--segment", "paying=true")
    user_ids = [*(f"user-{number}" for number in range(20)), "1e3", "é: #"]
    for number, user_id in enumerate(user_ids):
        user = User(user_id=user_id)
        user.attributes.update({"plan": ["pro", "team", "1e3", "no"][number % 4], "level": number % 6, "more": [None]})
        send(installation.admin, "CreateUser", pb.CreateUserRequest(user=user))
    return user_ids


def got(installation: Installation, user_ids: list[str]) -> list[bool]:
    return [installation.evaluate("aimed", user_id).value for user_id in user_ids]


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_exported_users_are_evaluated_the_same_after_a_wipe(
    as_editor: Run, as_admin: Run, installation: Installation, tmp_path: Path, form: str
) -> None:
    user_ids, file = populate(as_editor, installation), tmp_path / f"all.{form}"
    before = got(installation, user_ids)
    assert {*before} == {True, False}

    exported = as_editor("export", "--users", "--to", str(file), "-o", form)
    assert (exported.code, "flags: 1, segments: 1, users: 22, at" in exported.complaint) == (0, True)
    wipe(as_editor)
    assert as_editor("apply", "-f", "-", "--prune", "--yes", stdin="users: []\n").code == 0
    assert installation.query("SELECT count(*) FROM users") == [(0,)]
    applied = as_editor("apply", "-f", str(file))

    assert applied.code == 0, applied.complaint
    assert got(installation, user_ids) == before
    assert as_editor("export", "--users", "-o", form).printed == file.read_text(encoding="utf-8")
    revision = installation.revision()
    assert as_editor("apply", "-f", str(file), "--prune").printed == "nothing to change\n"
    assert installation.revision() == revision
    assert as_admin("audit-log", "verify").code == 0
    command = CliRunner().invoke(audit, ["reconcile"], obj=settings_for_tests(database_url=installation.dsn))
    # Other tests have changed what they share behind the log.
    faults = [line for line in command.output.splitlines() if line.strip().startswith(("user ", "flag aimed"))]
    assert ("reconciled with the log" in command.output, faults) == (True, [])


def test_users_are_exported_only_on_request_and_recorded(as_editor: Run, installation: Installation) -> None:
    populate(as_editor, installation)
    before = len(events(installation, event="users_listed"))
    assert "users" not in yaml.safe_load(as_editor("export").printed)
    assert len(events(installation, event="users_listed")) == before

    exported = yaml.safe_load(as_editor("export", "--users").printed)

    latest, *earlier = events(installation, event="users_listed")
    assert (latest.subject_count, len(earlier)) == (len(exported["users"]), before)
    assert exported["users"][0] == {"user_id": "1e3", "attributes": {"level": 2.0, "more": [None], "plan": "pro"}}


def test_absent_users_are_deleted_only_by_prune_and_a_section(
    as_editor: Run, installation: Installation, write: Callable[[str], str]
) -> None:
    populate(as_editor, installation)
    file = write("users:\n- user_id: user-1\n  attributes: {plan: free, level: 1, new: yes}\n")

    said = as_editor("diff", "-f", file)
    assert said.printed == (
        '~ user user-1\n    attributes.more: removed\n    attributes.new: "yes"\n    attributes.plan: "free"\n'
    )
    assert as_editor("apply", "-f", write("segments: []\n"), "--dry-run", "--prune").code == 7
    assert as_editor("apply", "-f", write("flags: []\n"), "--prune", "--yes").code == 0
    assert installation.query("SELECT count(*) FROM users") == [(22,)]

    assert as_editor("apply", "-f", write("users:\n- user_id: user-1\n"), "--prune", "--yes").code == 0
    assert installation.query("SELECT attributes FROM users") == [({},)]


def test_a_viewer_may_export_and_not_apply(as_editor: Run, as_viewer: Run, write: Callable[[str], str]) -> None:
    wipe(as_editor)
    exported: Said = as_viewer("export")

    assert exported.code == 0
    assert as_viewer("apply", "-f", write(FILE)).code == 5
    assert as_viewer("diff", "-f", write(FILE)).code == 5
