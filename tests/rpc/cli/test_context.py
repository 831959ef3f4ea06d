"""Contexts against real servers: which one a command calls, with which login, and what it says before a change."""

import json
import stat
from pathlib import Path

import pytest

from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords
from tests.support.clients import Installation
from tests.support.commands import Run, Stdin
from tests.support.servers import StartServer
from tests.support.tls import CertificateFolder

PASSWORD = "canary-password-of-ann"


@pytest.fixture
def address(installation: Installation) -> str:
    for name, role in (("ann", "editor"), ("ben", "viewer")):
        password_hash = Passwords(cost=MIN_COST).hash(PASSWORD, username=name)
        installation.execute(
            "INSERT INTO admin_user (username, password_hash, role, create_time, update_time)"
            " VALUES (%s, %s, %s, now(), now()) ON CONFLICT DO NOTHING",
            name,
            password_hash,
            role,
        )
    return f"127.0.0.1:{installation.server.port}"


@pytest.fixture
def shell(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command without a server in the environment."""
    monkeypatch.delenv("GATEKEEPER_SERVER")
    return run


def log_in(shell: Run, username: str, *more: str) -> None:
    assert shell("login", "--username", username, "--password-stdin", *more, stdin=PASSWORD).code == 0


def test_a_context_names_a_server_for_all_commands_once_it_is_used(shell: Run, address: str) -> None:
    made = shell("context", "set", "here", "--server", address)
    before = shell("evaluate", "bob", "--server", "127.0.0.1:1")
    used = shell("context", "use", "here")
    after = shell("evaluate", "bob")
    listed = shell("context", "list")

    assert [said.code for said in (made, before, used, after, listed)] == [0, 6, 0, 0, 0]
    assert "`gatekeeper context use here`" in made.complaint
    assert used.printed == f"commands use here ({address})\n"
    assert listed.printed.splitlines()[1].split() == ["here", "yes", address]


def test_what_is_typed_comes_before_variables_and_these_before_the_file(shell: Run, address: str) -> None:
    shell("context", "set", "here", "--server", address)
    shell("context", "set", "away", "--server", "127.0.0.1:1")
    shell("context", "use", "away")

    codes = [
        shell("evaluate", "bob").code,
        shell("evaluate", "bob", GATEKEEPER_SERVER=address).code,
        shell("evaluate", "bob", GATEKEEPER_CONTEXT="here").code,
        shell("evaluate", "bob", "--context", "here", GATEKEEPER_SERVER="127.0.0.1:1").code,
        shell("--context", "here", "evaluate", "bob", GATEKEEPER_CONTEXT="away").code,
        shell("evaluate", "bob", "--server", address, GATEKEEPER_CONTEXT="away").code,
    ]

    assert codes == [6, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "variables", "complaint"),
    [
        (["--context", "x", "--server", "h:1"], {}, "--server or --context, not both"),
        ([], {"GATEKEEPER_SERVER": "h:1", "GATEKEEPER_CONTEXT": "x"}, "are both set: unset one"),
        (["--tls-ca", "/no"], {}, "--tls-ca (GATEKEEPER_SERVER_CA_FILE) needs a server with TLS"),
        (["--server", "https://h:1", "--tls-ca", "/no"], {}, "--tls-ca: '/no' cannot be read"),
        (["--server", "https://h:1", "--tls-ca", __file__], {}, "must have certificates in PEM"),
    ],
)
def test_names_that_contradict_each_other_are_refused(
    shell: Run, arguments: list[str], variables: dict[str, str], complaint: str
) -> None:
    said = shell("evaluate", "bob", *arguments, **variables)

    assert (said.code, complaint in said.complaint) == (2, True), said.complaint


def test_an_operators_command_takes_no_context(shell: Run) -> None:
    said = shell("--context", "x", "config")

    assert (said.code, "--context is for commands that use flags" in said.complaint) == (2, True)


def test_each_context_has_a_login_of_its_own(shell: Run, address: str) -> None:
    for name, username in (("one", "ann"), ("two", "ben")):
        shell("context", "set", name, "--server", address)
        log_in(shell, username, "--context", name)

    who = [shell("whoami", "--context", name, "-o", "json").printed for name in ("one", "two")]
    nobody = shell("whoami", "--server", address)
    shell("logout", "--context", "one")

    said = [json.loads(each) for each in who]
    assert [(each["context"], each["username"]) for each in said] == [("one", "ann"), ("two", "ben")]
    assert nobody.code == 5
    assert [shell("whoami", "--context", name).code for name in ("one", "two")] == [5, 0]


def test_a_login_is_not_sent_to_another_server_of_the_same_name(shell: Run, address: str) -> None:
    shell("context", "set", "prod", "--server", address)
    log_in(shell, "ann", "--context", "prod")

    moved = shell("context", "set", "prod", "--server", "127.0.0.1:1")
    back = shell("context", "set", "prod", "--server", address)

    assert "the login of ann is forgotten" in moved.complaint
    assert (back.code, shell("whoami", "--context", "prod").code) == (0, 5)


def test_what_is_set_again_stays_and_the_login_does_too(shell: Run, address: str) -> None:
    shell("context", "set", "prod", "--server", address)
    log_in(shell, "ann", "--context", "prod")

    shell("context", "set", "prod")

    assert shell("whoami", "--context", "prod").code == 0


def test_a_change_in_a_context_names_it_before_it_is_made(shell: Run, address: str) -> None:
    shell("context", "set", "prod", "--server", address)
    log_in(shell, "ann", "--context", "prod")
    log_in(shell, "ann", "--server", address)
    created = shell("flags", "create", "ctx.one", "--context", "prod")
    asked = shell("flags", "delete", "ctx.one", "--context", "prod", stdin=Stdin("n\n", is_terminal=True))
    deleted = shell("flags", "delete", "ctx.one", "--yes", "--context", "prod")
    without = shell("flags", "create", "ctx.two", "--server", address)

    assert created.complaint == deleted.complaint == f"on prod ({address})\n"
    assert f"Delete flag 'ctx.one' on prod ({address})? [y/N]: " in asked.complaint
    assert (asked.code, without.complaint) == (1, "")


def test_errors_and_what_they_tell_to_run_name_the_context(shell: Run, address: str) -> None:
    shell("context", "set", "prod", "--server", address)

    typed = shell("flags", "list", "--context", "prod")
    by_address = shell("flags", "list", "--server", address)
    shell("context", "use", "prod")
    in_use = shell("flags", "list")

    assert typed.complaint.startswith(f"gatekeeper: not logged in to prod ({address})\n")
    assert typed.complaint.endswith(" login --context prod`\n")
    assert by_address.complaint.endswith(f" login --server {address}`\n")
    assert in_use.complaint.endswith(" login`\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["use", "no"], 3),
        (["delete", "no"], 3),
        (["set", "new"], 2),
        (["set", "a:b", "--server", "h:1"], 2),
        (["set", "new", "--server", ":1"], 2),
        (["set", "new", "--server", "h:1", "--tls-ca", __file__], 2),
        (["set", "new", "--server", "https://h:1", "--client-cert", __file__], 2),
    ],
)
def test_a_context_that_cannot_work_is_not_kept(shell: Run, arguments: list[str], code: int) -> None:
    assert shell("context", *arguments).code == code
    assert json.loads(shell("context", "list", "-o", "json").printed) == {"contexts": []}


def test_a_deleted_context_leaves_no_login(shell: Run, address: str, tmp_path: Path) -> None:
    shell("context", "set", "prod", "--server", address)
    log_in(shell, "ann", "--context", "prod")
    shell("context", "use", "prod")

    deleted = shell("context", "delete", "prod")

    kept = {file.name: file for file in (tmp_path / "gatekeeper").iterdir()}
    assert (deleted.code, json.loads(kept["sessions.json"].read_text())) == (0, {})
    assert {stat.S_IMODE(file.stat().st_mode) for file in kept.values()} == {0o600}
    assert shell("evaluate", "bob", "--context", "prod").code == 3


def test_a_context_has_the_certificates_of_its_servers_issuer(
    shell: Run, start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CertificateFolder(tmp_path)
    port = start_server(**folder.settings).port
    monkeypatch.chdir(tmp_path)
    shell("context", "set", "tls", "--server", f"https://127.0.0.1:{port}", "--tls-ca", folder.issuer_file.name)
    monkeypatch.chdir("/")

    assert shell("evaluate", "bob", "--context", "tls").code == 0
    assert shell("evaluate", "bob", "--server", f"https://127.0.0.1:{port}").code == 6
