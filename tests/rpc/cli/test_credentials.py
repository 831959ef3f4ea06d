"""Logins, API tokens, client keys, admin users and sessions by command: secrets are shown once, and never arguments."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords
from tests.support.clients import Installation
from tests.support.commands import Run, Stdin

PASSWORD = "canary-password-of-ann"
NEW_PASSWORD = "canary-quite-another-one"

LogIn = Callable[[], None]


@pytest.fixture
def log_in(run: Run, installation: Installation) -> LogIn:
    """Logs in as root, an admin."""

    def log_in() -> None:
        password_hash = Passwords(cost=MIN_COST).hash(PASSWORD, username="root")
        installation.execute(
            "INSERT INTO admin_user (username, password_hash, role, create_time, update_time)"
            " VALUES ('root', %s, 'admin', now(), now()) ON CONFLICT DO NOTHING",
            password_hash,
        )
        assert run("login", "--username", "root", "--password-stdin", stdin=PASSWORD).code == 0

    return log_in


def test_whoami_names_the_admin_user_the_role_and_the_session(run: Run, log_in: LogIn, as_viewer: Run) -> None:
    nobody = run("whoami")
    log_in()

    kept = json.loads(run("whoami", "-o", "json").printed)
    given = as_viewer("whoami")

    assert nobody.code == 5
    assert (kept["username"], kept["role"]) == ("root", "admin")
    assert kept["session_id"]
    assert "username:    viewer\n" in given.printed
    assert run("whoami", "-o", "name").printed == "root\n"


def test_whoami_of_a_token_names_its_maker_and_its_own_role(run: Run, log_in: LogIn) -> None:
    log_in()
    secret = run("tokens", "create", "deploy", "--role", "editor").printed.strip()

    said = json.loads(run("whoami", "-o", "json", GATEKEEPER_TOKEN=secret).printed)

    assert (said["username"], said["role"], said["token_name"]) == ("root", "editor", "deploy")


def test_a_token_is_kept_as_a_login_and_a_logout_leaves_it_valid(run: Run, log_in: LogIn, tmp_path: Path) -> None:
    log_in()
    secret = run("tokens", "create", "ci", "--role", "editor").printed.strip()

    said = run("login", "--token-stdin", stdin=f"{secret}\n")
    who = json.loads(run("whoami", "-o", "json").printed)
    listed = run("flags", "list")
    left = run("logout")

    assert said.printed.endswith(" as root, role editor\n")
    assert (who["token_name"], listed.code, left.code) == ("ci", 0, 0)
    assert run("flags", "list").code == 5
    assert run("flags", "list", GATEKEEPER_TOKEN=secret).code == 0


@pytest.mark.parametrize(("secret", "code"), [("", 2), ("no token", 2), ("gka_", 2), (f"gka_{20 * '0'}_{43 * 'x'}", 5)])
def test_what_is_no_token_is_not_kept_as_a_login(run: Run, tmp_path: Path, secret: str, code: int) -> None:
    said = run("login", "--token-stdin", stdin=secret)

    assert said.code == code
    assert not (tmp_path / "gatekeeper" / "sessions.json").exists()


def test_a_token_can_come_from_a_file(run: Run, log_in: LogIn, tmp_path: Path) -> None:
    log_in()
    file = tmp_path / "token"
    file.write_text(run("tokens", "create", "file").printed)
    run("logout")

    used = run("flags", "list", GATEKEEPER_TOKEN_FILE=str(file))
    both = run("flags", "list", GATEKEEPER_TOKEN_FILE=str(file), GATEKEEPER_TOKEN="x")
    missing = run("flags", "list", GATEKEEPER_TOKEN_FILE=str(tmp_path / "no"))
    file.write_text("\n")
    empty = run("flags", "list", GATEKEEPER_TOKEN_FILE=str(file))

    assert [said.code for said in (used, both, missing, empty)] == [0, 2, 2, 2]
    assert "unset one" in both.complaint


def test_a_refused_token_of_the_environment_is_not_answered_with_a_login(run: Run) -> None:
    said = run("flags", "list", GATEKEEPER_TOKEN="gka_x")

    assert said.code == 5
    assert "\nnext: replace GATEKEEPER_TOKEN, or unset it and run `" in said.complaint


@pytest.mark.parametrize("command", ["tokens", "client-keys"])
def test_a_secret_is_printed_alone_and_never_lost(run: Run, log_in: LogIn, command: str) -> None:
    log_in()

    made = run(command, "create", "once")
    document = json.loads(run(command, "create", "twice", "-o", "json").printed)
    refused = run(command, "create", "never", "-o", "name")
    checked = run(command, "create", "checked", "--dry-run")

    assert len(made.printed.split()) == 1
    assert made.complaint.endswith(": its secret is shown once\n")
    assert made.printed.strip() not in made.complaint
    assert document["secret"]
    assert (refused.code, checked.code) == (2, 0)
    assert "would lose the secret" in refused.complaint
    names = run(command, "list", "-o", "wide").printed
    assert [name in names for name in ("once", "twice", "never", "checked")] == [True, True, False, False]


def test_a_client_key_is_made_used_by_file_listed_and_revoked(run: Run, log_in: LogIn, tmp_path: Path) -> None:
    log_in()
    files = {kind: tmp_path / kind for kind in ("bearer", "signing", "secret")}
    for kind in ("bearer", "signing"):
        said = run("client-keys", "create", "web", "--type", kind, "--tier", "high", "--days", "3", "-o", "json")
        files[kind].write_text(said.printed)
    files["secret"].write_text(json.loads(files["bearer"].read_text())["secret"])

    used = [run("evaluate", "bob", "--key-file", str(file)).code for file in files.values()]
    key_id = json.loads(files["signing"].read_text())["client_key"]["key_id"]
    revoked = run("client-keys", "revoke", key_id, "--reason", "test")
    refused = run("evaluate", "bob", "--key-file", str(files["signing"]))
    (row,) = [line.split() for line in run("client-keys", "list").printed.splitlines() if line.startswith(key_id)]

    assert used == [0, 0, 0]
    assert (revoked.code, revoked.printed) == (0, f"{key_id} is revoked\n")
    assert refused.code == 5
    assert "\nnext: check the client key in --key-file" in refused.complaint
    assert (row[1:4], row[-1]) == (["web", "signing", "high"], "revoked")


@pytest.mark.parametrize("content", ["", "no key", "{}", '{"secret": 3}', "[]", '{"secret": "x", "client_key": {}}'])
def test_a_file_without_a_client_key_is_refused(run: Run, tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content)

    assert run("evaluate", "bob", "--key-file", str(file)).code == 2
    assert run("evaluate", "bob", "--key-file", str(tmp_path / "no")).code == 2


def test_an_admin_user_is_made_changed_and_deleted(as_admin: Run, run: Run) -> None:
    created = as_admin("admins", "create", "cleo", "--role", "editor", "--password-stdin", stdin=PASSWORD)
    demoted = as_admin("admins", "update", "cleo", "--role", "viewer", "-o", "json")
    given = as_admin("admins", "set-password", "cleo", "--must-change-password", "--password-stdin", stdin=NEW_PASSWORD)
    must_change = run("login", "--username", "cleo", "--password-stdin", stdin=NEW_PASSWORD)
    own = run("change-password", "--username", "cleo", "--password-stdin", stdin=f"{NEW_PASSWORD}\n{PASSWORD}\n")
    logged_in = run("login", "--username", "cleo", "--password-stdin", stdin=PASSWORD)
    disabled = as_admin("admins", "update", "cleo", "--disabled")
    unasked = as_admin("admins", "delete", "cleo")
    deleted = as_admin("admins", "delete", "cleo", "--yes")

    codes = [said.code for said in (created, demoted, given, must_change, own, logged_in, disabled, unasked, deleted)]
    assert codes == [0, 0, 0, 7, 0, 0, 0, 2, 0]
    assert json.loads(demoted.printed)["role"] == "ROLE_VIEWER"
    assert "change-password --username cleo`" in must_change.complaint
    assert "enabled:     no\n" in disabled.printed
    assert "cleo" not in as_admin("admins", "list", "-o", "name").printed.split()


def test_a_new_password_is_asked_for_twice_and_never_shown(as_admin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([PASSWORD, "canary-typing-error", PASSWORD, PASSWORD])
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda _prompt: next(answers))

    said = as_admin("admins", "create", "typist", stdin=Stdin("", is_terminal=True))
    without_terminal = as_admin("admins", "create", "typist2")

    assert (said.code, without_terminal.code) == (0, 2)
    assert "canary" not in f"{said}{without_terminal}"


def test_nobody_below_admin_lists_admin_users(as_editor: Run) -> None:
    said = as_editor("admins", "list")

    assert said.code == 5
    assert "\nnext: `" in said.complaint
    assert " whoami` shows your role" in said.complaint


def test_own_password_is_changed_and_the_login_ends(run: Run, as_admin: Run, tmp_path: Path) -> None:
    as_admin("admins", "create", "dora", "--password-stdin", stdin=PASSWORD)
    run("login", "--username", "dora", "--password-stdin", stdin=PASSWORD)

    wrong = run("change-password", "--password-stdin", stdin=f"{NEW_PASSWORD}\n{PASSWORD}")
    one_line = run("change-password", "--password-stdin", stdin=PASSWORD)
    done = run("change-password", "--password-stdin", stdin=f"{PASSWORD}\n{NEW_PASSWORD}")

    assert [said.code for said in (wrong, one_line, done)] == [5, 2, 0]
    assert json.loads((tmp_path / "gatekeeper" / "sessions.json").read_text()) == {}
    assert "canary" not in f"{wrong}{one_line}{done}"
    assert run("change-password").code == 2


def test_sessions_are_listed_and_ended(run: Run, log_in: LogIn) -> None:
    log_in()
    own = json.loads(run("whoami", "-o", "json").printed)["session_id"]

    listed = run("sessions", "list", "--username", "root").printed.splitlines()
    ended = run("sessions", "revoke", own)

    (row,) = [line.split() for line in listed if line.startswith(own)]
    assert (row[1], row[-1]) == ("root", "yes")
    assert ended.printed == f"{own} has ended\n"
    assert run("sessions", "revoke", own).code == 5
