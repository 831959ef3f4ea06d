"""Client commands against a real server: what they print, their exit codes, and what they never import."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gatekeeper_client.v1.auth_service_pb2 import LogoutRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords
from gatekeeper_grpc.config.program import program
from tests.support.clients import TIMEOUT_S, Installation
from tests.support.commands import Run, Said
from tests.support.servers import access_token

PASSWORD = "canary-password-of-ann"
UNKNOWN_KEY = f"gkc_{20 * '0'}_{43 * 'x'}"
FORBIDDEN = ("psycopg", "pydantic", "pydantic_settings", "structlog", "rich", "gatekeeper_grpc.config.settings")


@pytest.fixture
def logged_in(run: Run, installation: Installation, tmp_path: Path) -> Path:
    """Logs in as ann; returns the file that keeps the login."""
    if not installation.query("SELECT 1 FROM admin_user WHERE username = 'ann'"):
        password_hash = Passwords(cost=MIN_COST).hash(PASSWORD, username="ann")
        installation.execute(
            "INSERT INTO admin_user (username, password_hash, role, create_time, update_time)"
            " VALUES ('ann', %s, 'editor', now(), now())",
            password_hash,
        )
    said = log_in(run)
    assert (said.code, said.printed) == (0, f"logged in to 127.0.0.1:{installation.server.port} as ann, role editor\n")
    return tmp_path / "gatekeeper" / "sessions.json"


def log_in(run: Run, password: str = PASSWORD) -> Said:
    return run("login", "--username", "ann", "--password-stdin", stdin=f"{password}\n")


def change_kept(file: Path, **fields: Any) -> None:
    kept = {server: {**session, **fields} for server, session in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(kept))


def test_a_token_is_made_used_listed_and_revoked(run: Run, logged_in: Path) -> None:
    made = run("tokens", "create", "deploy", "--role", "editor", "--days", "1")
    secret = made.printed.strip()
    token_id = f"at_{secret.split('_')[1]}"
    used = run("flags", "create", "cli.by_token", GATEKEEPER_TOKEN=secret)
    listed = run("tokens", "list")
    revoked = run("tokens", "revoke", token_id)
    after = run("tokens", "list", "--username", "ann", "-o", "json")
    refused = run("flags", "list", GATEKEEPER_TOKEN=secret)

    assert [said.code for said in (made, used, listed, revoked, after, refused)] == [0, 0, 0, 0, 0, 5]
    header, *rows = listed.printed.splitlines()
    assert header.split() == ["TOKEN", "NAME", "ROLE", "MAKER", "EXPIRES", "STATE"]
    (row,) = [row.split() for row in rows if row.startswith(token_id)]
    assert (row[1:4], row[-1]) == (["deploy", "editor", "ann"], "live")
    assert revoked.printed == f"{token_id} is revoked\n"
    (token,) = [token for token in json.loads(after.printed)["api_tokens"] if token["token_id"] == token_id]
    assert token["revoke_time"]
    assert secret not in f"{listed}{after}"


def test_a_role_above_ones_own_is_refused_in_a_line(run: Run, logged_in: Path) -> None:
    said = run("tokens", "create", "deploy", "--role", "admin")

    assert (said.code, said.printed) == (5, "")
    assert "this call needs role ADMIN, yours is EDITOR" in said.complaint


def test_a_flag_is_created_changed_and_evaluated(as_editor: Run, run: Run) -> None:
    created = as_editor("flags", "create", "cli.one", "--rollout", "100", "--tag", "cli", "-o", "json")
    before = run("evaluate", "bob", "--flag", "cli.one")
    enabled = as_editor("flags", "enable", "cli.one")
    after = run("evaluate", "bob", "--flag", "cli.one", "--explain", "-o", "json")
    rollout = as_editor("flags", "set-rollout", "cli.one", "30", "--dry-run", "-o", "json")
    listed = as_editor("flags", "list", "--tag", "cli", "-o", "json")

    assert json.loads(created.printed)["key"] == "cli.one"
    assert before.printed.splitlines()[:2] == ["FLAG     VALUE", "cli.one  false"]
    assert "enabled:     yes\n" in enabled.printed
    assert json.loads(after.printed)["details"]["cli.one"]["reason"] == "REASON_STATIC"
    assert json.loads(rollout.printed)["rollout_percentage"] == 30
    assert [flag["rollout_percentage"] for flag in json.loads(listed.printed)["flags"]] == [100]
    assert "enabled:     no\n" not in as_editor("flags", "disable", "cli.one").complaint


def test_flags_of_an_anonymous_user_are_evaluated(as_editor: Run, run: Run) -> None:
    as_editor("flags", "create", "cli.nobody", "--default", "true")

    assert "cli.nobody  true" in run("evaluate", "--flag", "cli.nobody").printed


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["flags", "get", "no.such"], 3, "gatekeeper: flag 'no.such' does not exist (FLAG_NOT_FOUND)"),
        (["evaluate", "bob", "--flag", "no.such"], 3, "gatekeeper: no such flag: no.such"),
        (["flags", "create", "!"], 2, "(INVALID_ARGUMENT)"),
        (["flags", "set-rollout", "x", "101"], 2, "101 is not in the range 0<=x<=100"),
        (["evaluate", "bob", "--attr", "plan"], 2, "'plan' must be NAME=VALUE"),
        (["evaluate", "bob", "--attr", "id=9007199254740993"], 2, "write it as text, 'id=\"9007199254740993\"'"),
        (["evaluate", "bob", "--attr", "ids=[9007199254740993]"], 2, "'ids' has an integer beyond 2^53"),
        (["evaluate", "b\udcffb"], 2, "gatekeeper: an argument must be UTF-8"),
        (["evaluate", "bob", "--attr", 'x="\\ud800"'], 2, "gatekeeper: an argument must be UTF-8"),
        (["evaluate", "bob", "--server", ":1"], 2, "':1' must be host:port, unix:/path, or https://host[:port]"),
        (["evaluate", "bob", "--server", "127.0.0.1:1"], 6, "gatekeeper: no server answers at 127.0.0.1:1"),
    ],
)
def test_a_failure_is_one_line_with_an_exit_code_of_its_kind(
    as_editor: Run, arguments: list[str], code: int, complaint: str
) -> None:
    said = as_editor(*arguments)

    assert said.code == code
    assert complaint in [line for line in said.complaint.splitlines() if not line.startswith("next: ")][-1]


def test_a_key_that_exists_is_a_conflict(as_editor: Run) -> None:
    codes = [as_editor("flags", "create", "cli.twice").code for _ in range(2)]

    assert codes == [0, 4]


def test_without_a_login_the_command_that_logs_in_is_named(run: Run) -> None:
    said = run("flags", "list")

    assert (said.code, said.printed) == (5, "")
    assert said.complaint.startswith("gatekeeper: not logged in to 127.0.0.1:")
    assert said.complaint.endswith(f"\nnext: run `{program()} login`\n")


def test_a_wrong_password_is_refused_and_not_repeated(run: Run, logged_in: Path) -> None:
    said = log_in(run, password="canary-wrong-password")

    assert said.code == 5
    assert "(UNAUTHENTICATED)" in said.complaint
    assert "canary" not in said.printed + said.complaint


def test_evaluate_sends_a_client_key_and_no_access_token(run: Run, installation: Installation) -> None:
    token = access_token(installation.dsn, "viewer")

    with_token, with_unknown_key = (run("evaluate", "bob", GATEKEEPER_TOKEN=sent) for sent in (token, UNKNOWN_KEY))

    assert (with_token.code, with_unknown_key.code) == (0, 5)


def test_a_login_serves_later_commands_until_it_is_logged_out(run: Run, logged_in: Path) -> None:
    listed = run("flags", "list")
    left = run("logout")

    assert (listed.code, left.code) == (0, 0)
    assert PASSWORD not in logged_in.read_text()
    assert run("flags", "list").code == 5


@pytest.mark.parametrize("fields", [{"expire_time_s": 0}, {"access_token": "not.a.token"}], ids=["expired", "refused"])
def test_an_access_token_that_is_not_accepted_is_refreshed(run: Run, logged_in: Path, fields: dict[str, Any]) -> None:
    change_kept(logged_in, **fields)
    before = json.loads(logged_in.read_text())

    said = run("flags", "list")

    assert said.code == 0
    assert json.loads(logged_in.read_text()) != before


@pytest.mark.promise("D3")
def test_twenty_commands_with_an_expired_token_refresh_it_once(
    run: Run, logged_in: Path, installation: Installation
) -> None:
    change_kept(logged_in, expire_time_s=0)
    issued = "SELECT count(*) FROM refresh_tokens"
    (before,) = installation.query(issued)

    command = [sys.executable, "-m", "gatekeeper_grpc", "flags", "list"]
    shells = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(20)]

    assert [shell.wait(TIMEOUT_S) for shell in shells] == [0] * 20
    assert installation.query(issued) == [(before[0] + 1,)]
    assert installation.query("SELECT event FROM auth_events WHERE event ~ '^(refresh|logout|session)'") == []
    assert run("whoami").code == 0


def test_a_login_that_was_ended_elsewhere_is_forgotten(run: Run, logged_in: Path, installation: Installation) -> None:
    (session,) = json.loads(logged_in.read_text()).values()
    stub = AuthServiceStub(installation.channels[None])
    stub.Logout(LogoutRequest(refresh_token=session["refresh_token"]), timeout=TIMEOUT_S)

    said = run("flags", "list")

    assert (said.code, json.loads(logged_in.read_text())) == (5, {})
    assert said.complaint.endswith(f"has ended\nnext: run `{program()} login`\n")


def test_a_proxy_of_the_environment_is_not_asked(run: Run) -> None:
    assert run("evaluate", "bob", http_proxy="http://127.0.0.1:1", https_proxy="http://127.0.0.1:1").code == 0


IMPORTS = """
import sys
from gatekeeper_grpc.cli import main as cli
code = cli.run()
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "also_forbidden"),
    [
        (["--help"], ("grpc", "google.protobuf")),
        (["flags", "--help"], ("grpc", "google.protobuf")),
        (["evaluate", "bob", "--explain"], ()),
        (["flags", "list", "-o", "yaml"], ()),
        (["users", "--help"], ("grpc", "google.protobuf", "yaml")),
        (["bulk-evaluate", "--help"], ("grpc", "google.protobuf", "yaml")),
        (["audit-log", "list"], ("yaml",)),
        (["whoami"], ("yaml",)),
    ],
    ids=["help", "help of flags", "evaluate", "flags list", "help of users", "help of bulk", "audit log", "whoami"],
)
def test_a_client_command_imports_nothing_of_the_server(
    arguments: list[str], also_forbidden: tuple[str, ...], installation: Installation
) -> None:
    environment = {
        "GATEKEEPER_SERVER": f"127.0.0.1:{installation.server.port}",
        "GATEKEEPER_TOKEN": access_token(installation.dsn, "viewer"),
        "GATEKEEPER_LOG_LEVEL": "wrong",
        "DATABASE_URL": "wrong",
    }

    command = [sys.executable, "-c", IMPORTS, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)

    assert done.returncode == 0, done.stderr
    assert set(done.stderr.split()) & {*FORBIDDEN, *also_forbidden} == set()
