"""`gatekeeper watch` and `gatekeeper audit-log` against a real server."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import yaml

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.evaluation_service_pb2 import WatchFlagsResponse
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.cli.client import watch
from tests.support.clients import TIMEOUT_S, Installation
from tests.support.commands import Run
from tests.support.lost_calls import Lost


def test_watch_prints_what_changed_since_a_revision(as_editor: Run, run: Run, installation: Installation) -> None:
    as_editor("flags", "create", "watch.first")  # 0 would be: from now on
    begin = str(installation.revision())
    as_editor("flags", "create", "watch.a")
    as_editor("flags", "create", "watch.b")
    now = installation.revision()

    said = run("watch", "--from-revision", begin, "--limit", "1")
    names = run("watch", "--from-revision", begin, "--limit", "1", "--flag", "watch.b", "-o", "name")
    lines = run("watch", "--from-revision", begin, "--limit", "1", "-o", "json").printed.splitlines()

    assert said.printed == f"{now}  watch.a  created\n{now}  watch.b  created\n"
    assert said.complaint == f"watching from revision {now}\n"
    assert names.printed == "watch.b\n"
    assert [len(json.loads(line)["changes"]) for line in lines] == [2]


def test_a_reset_stands_for_any_flag(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_stream", lambda *_: iter([WatchFlagsResponse(revision=7, reset=True)]))

    said = [run("watch", "--limit", "1", "-o", kind).printed for kind in ("table", "name")]

    assert said == ["7  *  reset\n", "*\n"]


def test_a_watch_goes_on_from_the_last_revision_when_it_breaks(
    as_editor: Run, run: Run, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_editor("flags", "create", "watch.zero")  # 0 would be: from now on
    begin = installation.revision()
    as_editor("flags", "create", "watch.before")
    seen, stream = [], watch._stream

    def break_once(service: Any, flag_keys: Any, revision: int) -> Iterator[Any]:
        seen.append(revision)
        if len(seen) == 1:
            yield next(stream(service, flag_keys, revision))
            raise Lost
        request = CreateFlagRequest(flag=Flag(key="watch.after"))
        installation.admin.CreateFlag(request, timeout=TIMEOUT_S)
        yield from stream(service, flag_keys, revision)

    monkeypatch.setattr(watch, "_stream", break_once)
    said = run("watch", "--from-revision", str(begin), "--limit", "2", "-o", "name")

    assert said.printed == "watch.before\nwatch.after\n"
    assert seen == [begin, begin + 1]
    assert f"the watch broke at revision {begin + 1}: opening another\n" in said.complaint


@pytest.mark.parametrize(("arguments", "code"), [(["--from-revision", "999999"], 7), (["--server", "127.0.0.1:1"], 6)])
def test_a_watch_that_cannot_begin_fails(run: Run, arguments: list[str], code: int) -> None:
    assert run("watch", *arguments).code == code


def test_a_refused_stream_is_not_opened_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(service: Any, flag_keys: Any, revision: int) -> Iterator[Any]:
        yield next(watch_stream(service, flag_keys, revision))
        raise Refused

    watch_stream = watch._stream
    monkeypatch.setattr(watch, "_stream", refuse)

    assert run("watch").code == 5


class Refused(Lost):
    """A credential that has ended."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAUTHENTICATED


def test_entries_are_listed_by_filters_newest_first(as_editor: Run) -> None:
    as_editor("flags", "create", "log.one", "--reason", "because")
    as_editor("segments", "create", "log.segment")
    as_editor("flags", "enable", "log.one")

    of_flag = as_editor("audit-log", "list", "--type", "flag", "--key", "log.one")
    of_action = as_editor("audit-log", "list", "--action", "CreateSegment", "--actor", "admin:editor", "-o", "wide")
    future = as_editor("audit-log", "list", "--since", "2100-01-01", "-o", "name")
    newest = as_editor("audit-log", "list", "--limit", "1", "-o", "json")
    alone = as_editor("audit-log", "list", "--key", "log.one")

    rows = [line.split() for line in of_flag.printed.splitlines()[1:]]
    assert [(row[3], row[-1]) for row in rows] == [("UpdateFlag", "true"), ("CreateFlag", "because")]
    assert "segment log.segment" in of_action.printed
    assert (future.printed, len(json.loads(newest.printed)["audit_entries"])) == ("", 1)
    assert alone.code == 2


def test_all_entries_are_exported_with_all_their_fields(as_editor: Run, installation: Installation) -> None:
    as_editor("flags", "create", "export.one")
    ((count,),) = installation.query("SELECT count(*) FROM audit_log")

    entries = [json.loads(line) for line in as_editor("audit-log", "export").printed.splitlines()]
    as_yaml = as_editor("audit-log", "export", "--action", "CreateFlag", "-o", "yaml")

    assert (len(entries), entries[0]["seq"]) == (count, str(count))
    assert all(entry["hash"] and entry["document"] for entry in entries)
    assert {entry["action"] for entry in yaml.safe_load_all(as_yaml.printed)} == {"CreateFlag"}


def test_the_log_is_verified_and_an_altered_one_is_an_error(as_editor: Run, installation: Installation) -> None:
    as_editor("flags", "create", "verify.one")
    good = as_editor("audit-log", "verify")
    head = as_editor("audit-log", "verify", "-o", "name").printed.strip()
    contained = as_editor("audit-log", "verify", "--anchor", head, "-o", "json")
    wrong = as_editor("audit-log", "verify", "--anchor", f"1:{64 * '0'}")
    misspelt = as_editor("audit-log", "verify", "--anchor", "1:x")

    assert [said.code for said in (good, contained, wrong, misspelt)] == [0, 0, 1, 2]
    assert good.printed.startswith("verified ")
    assert json.loads(contained.printed)["complete"] is True
    assert wrong.complaint.startswith("gatekeeper: anchor_mismatch at entry 1: ")


def test_logins_are_listed_for_admins_alone(as_admin: Run, as_editor: Run, run: Run) -> None:
    run("login", "--username", "nobody", "--password-stdin", stdin="canary-password")

    listed = as_admin("audit-log", "logins", "--event", "login_failed")

    assert "login_failed  nobody" in listed.printed
    assert as_editor("audit-log", "logins").code == 5


def test_a_checkpoint_without_a_signing_key_is_refused_by_the_state(as_editor: Run) -> None:
    said = as_editor("audit-log", "checkpoint")

    assert (said.code, "(AUDIT_SIGNING_KEY_MISSING)" in said.complaint) == (7, True)
