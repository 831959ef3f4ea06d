"""Every committed mutation is a line of the log, written by the instance that committed it, without any person."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_user_pb2 import ROLE_VIEWER, AdminUser
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.auth.checkpoints import CheckpointSigner, key_to_text
from gatekeeper_grpc.cli.audit import audit
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.operations.checkpoint_file import CheckpointFile
from gatekeeper_grpc.store.audit.head_reporter import AuditHeadReporter
from gatekeeper_grpc.store.audit.lines import EVENT
from tests.support.clients import TIMEOUT_S, Installation, created, installed, new_key, outcome_of
from tests.support.mutations import MUTATIONS
from tests.support.servers import settings_for_tests

pytestmark = pytest.mark.promise("D8")

EMAIL = "canary7f3a@example.org"


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    with installed(postgres) as installation:
        yield installation


def lines(logs: list[Any]) -> list[dict[str, Any]]:
    return [dict(log) for log in logs if log["event"] == EVENT]


def exported(installation: Installation, first: int) -> list[dict[str, Any]]:
    settings = settings_for_tests(database_url=installation.dsn)
    result = CliRunner().invoke(audit, ["export", "--from", str(first)], obj=settings, catch_exceptions=False)
    # Servers of this process may log to the same output.
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def without(line: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}


@pytest.mark.parametrize("rpc", MUTATIONS)
def test_every_mutation_leaves_one_line_with_its_number_and_hash(installation: Installation, rpc: str) -> None:
    mutation = MUTATIONS[rpc]
    key = new_key() if mutation.creates else mutation.kind.make(installation, new_key())
    with capture_logs() as logs:
        mutation.ask(installation, key)
    (line,) = [line for line in lines(logs) if line["action"] == rpc]
    head = installation.audit_anchor()

    assert (line["seq"], line["hash"]) == (head.seq, head.hash.hex())
    assert line["resource_type"] == mutation.resource
    assert isinstance(line["actor_id"], int)
    assert ("key" in line) == (mutation.resource in {"flag", "targets", "segment", "members"})


def test_a_line_says_who_did_what_to_which_flag_and_no_more(installation: Installation) -> None:
    with capture_logs() as logs:
        created(installation.admin, key="checkout")
    (line,) = lines(logs)
    ((admin_id, create_time, revision, seq, digest),) = installation.query(
        "SELECT admin_id, a.create_time, a.revision, seq, hash FROM admin_user, audit_log a, revision_head h"
        " WHERE username = 'editor' AND seq = audit_seq"
    )

    assert without(line, "log_level", "call_id") == {
        "event": "audit_entry",
        "seq": seq,
        "hash": digest.hex(),
        "revision": revision,
        "create_time": create_time.isoformat(timespec="microseconds"),
        "action": "CreateFlag",
        "actor_id": admin_id,
        "resource_type": "flag",
        "key": "checkout",
    }


def test_no_line_names_a_person_or_what_was_written_about_one(installation: Installation) -> None:
    admin, editor = installation.admin_as(Role.ADMIN), installation.admin
    key = created(editor).key
    user = User(user_id=EMAIL)
    user.attributes["mail"] = EMAIL
    first = installation.audit_anchor().seq + 1
    with capture_logs() as logs:
        editor.CreateUser(pb.CreateUserRequest(user=user, change_reason=EMAIL), timeout=TIMEOUT_S)
        editor.AddTargets(pb.AddTargetsRequest(flag_key=key, user_ids=[EMAIL], value=True), timeout=TIMEOUT_S)
        editor.CreateFlag(
            pb.CreateFlagRequest(flag=Flag(key=new_key(), description=EMAIL, owner=EMAIL, tags=[EMAIL])),
            timeout=TIMEOUT_S,
        )
        account = AdminUser(username=EMAIL, role=ROLE_VIEWER)
        admin.CreateAdminUser(
            pb.CreateAdminUserRequest(admin_user=account, password="correct horse battery"), timeout=TIMEOUT_S
        )
        editor.DeleteUser(pb.DeleteUserRequest(user_id=EMAIL), timeout=TIMEOUT_S)
    found = lines(logs)

    assert [line["seq"] for line in found] == list(range(first, first + 5))
    assert "canary7f3a" not in str(found)
    assert "canary7f3a" not in str(exported(installation, first))


def test_what_was_not_committed_leaves_no_line(installation: Installation) -> None:
    key = created(installation.admin).key
    with capture_logs() as logs:
        outcome_of(lambda: created(installation.admin, key=key))
        flag = Flag(key=new_key())
        installation.admin.CreateFlag(pb.CreateFlagRequest(flag=flag, validate_only=True), timeout=TIMEOUT_S)

    assert lines(logs) == []


REFUSE_COMMIT = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no commit'; END$$;
    CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON change_log DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION refuse()
"""


def test_a_commit_that_fails_leaves_no_line(postgres: str) -> None:
    with installed(postgres) as installation:
        installation.execute(REFUSE_COMMIT)
        with capture_logs() as logs, pytest.raises(grpc.RpcError):
            created(installation.admin)
        installation.execute("DROP TRIGGER refuse ON change_log")
        # The twin: the same call leaves one as soon as it is committed.
        with capture_logs() as later:
            created(installation.admin)

    assert lines(logs) == []
    assert len(lines(later)) == 1


def test_an_export_has_the_lines_that_were_logged(installation: Installation) -> None:
    first = installation.audit_anchor().seq + 1
    with capture_logs() as logs:
        for _ in range(3):
            created(installation.admin)
    logged = [without(line, "log_level", "call_id") for line in lines(logs)]

    assert exported(installation, first) == logged
    assert exported(installation, first + 1) == logged[1:]
    assert exported(installation, first + 3) == []


def test_numbers_show_which_lines_are_missing(installation: Installation) -> None:
    with capture_logs() as logs:
        for _ in range(4):
            created(installation.admin)
    kept = [line["seq"] for line in lines(logs) if line["seq"] != lines(logs)[1]["seq"]]
    (gap,) = {*range(kept[0], kept[-1] + 1)} - {*kept}

    assert exported(installation, gap)[0]["hash"] == lines(logs)[1]["hash"]


def test_a_checkpoint_file_has_the_signed_head(installation: Installation, tmp_path: Path) -> None:
    signer = CheckpointSigner(bytes(range(32)))
    file = CheckpointFile(tmp_path / "checkpoint", signer)
    reporter = AuditHeadReporter(installation.server.stores.audit, installation.server.database, keep=file.keep)
    created(installation.admin)
    reporter.run()
    anchor = installation.audit_anchor()
    arguments = ["verify-checkpoint", str(tmp_path / "checkpoint"), "--public-key", key_to_text(signer.public_key)]
    verified = CliRunner().invoke(audit, arguments, obj=settings_for_tests(), catch_exceptions=False)

    assert verified.output == f"{anchor.seq}:{anchor.hash.hex()}\n"
    assert (tmp_path / "checkpoint").stat().st_mode & 0o777 == 0o644
