"""What a new user meets first: each failure is a line that says what happened, and one that says what to do next.

Real processes, with nothing but the variables of a case in their environment, call real servers.
"""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords
from gatekeeper_grpc.testing import serve
from tests.support.clients import TIMEOUT_S, Installation, created
from tests.support.servers import access_token
from tests.support.tls import CertificateFolder, Issuer

PASSWORD = "canary-password-of-ann"
ESCAPE = "\x1b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command of a new user, and what it must say. Words in braces are servers, tokens and files."""

    arguments: str
    code: int
    says: str
    next: str
    stdin: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


HERE, AS_VIEWER = {"GATEKEEPER_SERVER": "{here}"}, {"GATEKEEPER_SERVER": "{here}", "GATEKEEPER_TOKEN": "{viewer}"}
CASES = {
    "wrong password": Case(
        arguments="login --username ann --password-stdin",
        stdin="canary-wrong",
        variables=HERE,
        code=5,
        says="these credentials are not valid",
        next="check the username and the password",
    ),
    "password that must be changed": Case(
        arguments="login --username eve --password-stdin",
        stdin=PASSWORD,
        variables=HERE,
        code=7,
        says="PASSWORD_CHANGE_REQUIRED",
        next="run `gatekeeper change-password --username eve`",
    ),
    "no password": Case(
        arguments="login",
        variables=HERE,
        code=2,
        says="standard input is no terminal",
        next="`gatekeeper login --help`",
    ),
    "no login": Case(
        arguments="flags list", variables=HERE, code=5, says="not logged in to {here}", next="run `gatekeeper login`"
    ),
    "no login on a server that was typed": Case(
        arguments="flags list --server {here}",
        code=5,
        says="not logged in to {here}",
        next="run `gatekeeper login --server {here}`",
    ),
    "server down": Case(
        arguments="evaluate alice --server 127.0.0.1:1",
        code=6,
        says="no server answers at 127.0.0.1:1$",
        next="start one with `gatekeeper serve --demo`, or name another with --server or --context",
    ),
    "unknown host": Case(
        arguments="evaluate alice --server no-such-host.invalid:50051",
        code=6,
        says="its host is not known",
        next="check the name for typing errors",
    ),
    "expired token": Case(
        arguments="flags list",
        variables={**HERE, "GATEKEEPER_TOKEN": "{expired}"},
        code=5,
        says="UNAUTHENTICATED",
        next="replace GATEKEEPER_TOKEN, or unset it and run `gatekeeper login`",
    ),
    "no right": Case(
        arguments="flags create mine",
        variables=AS_VIEWER,
        code=5,
        says="needs role EDITOR, yours is VIEWER",
        next="`gatekeeper whoami` shows your role",
    ),
    "unknown flag": Case(
        arguments="flags get no.such",
        variables=AS_VIEWER,
        code=3,
        says="flag 'no.such' does not exist",
        next="`gatekeeper flags list` shows all flags",
    ),
    "unknown flag of an evaluation": Case(
        arguments="evaluate alice --flag no.such",
        variables=AS_VIEWER,
        code=3,
        says="no such flag: no.such",
        next="`gatekeeper flags list` shows all flags",
    ),
    "wrong type of a number": Case(
        arguments="flags set-rollout new lots",
        variables=AS_VIEWER,
        code=2,
        says="'lots' is not a valid integer",
        next="`gatekeeper flags set-rollout --help`",
    ),
    "wrong type of a value": Case(
        arguments="flags create new --default perhaps",
        variables=AS_VIEWER,
        code=2,
        says="'perhaps' is not a valid boolean",
        next="`gatekeeper flags create --help`",
    ),
    "value that the server refuses": Case(
        arguments="flags get !",
        variables=AS_VIEWER,
        code=2,
        says="INVALID_ARGUMENT",
        next="`gatekeeper flags get --help`",
    ),
    "nothing named": Case(
        arguments="flags get",
        variables=AS_VIEWER,
        code=2,
        says="Missing argument 'KEY'",
        next="`gatekeeper flags get --help`",
    ),
    "no TLS to a server with TLS": Case(
        arguments="evaluate alice --server {tls}",
        code=6,
        says="{tls} speaks TLS only",
        next="name it with --server https://{tls}",
    ),
    "TLS to a server without": Case(
        arguments="evaluate alice --server https://{here}",
        code=6,
        says="{here} speaks no TLS",
        next="name it with --server {here}",
    ),
    "unknown issuer": Case(
        arguments="evaluate alice --server https://{tls}",
        code=6,
        says="the certificate of {tls} is of an unknown issuer",
        next="name the file of the issuer with --tls-ca",
    ),
    "another issuer": Case(
        arguments="evaluate alice --server https://{tls} --tls-ca {other_ca}",
        code=6,
        says="the certificate of {tls} is of an unknown issuer",
        next="name the file of the issuer with --tls-ca",
    ),
    "wrong host name": Case(
        arguments="evaluate alice --server https://{other_host} --tls-ca {ca}",
        code=5,
        says="the certificate of {other_host} is of another host",
        next="name the server as its certificate does",
    ),
    "no certificate for a server that asks for one": Case(
        arguments="evaluate alice --server https://{asking} --tls-ca {ca}",
        code=6,
        says="{asking} has closed the connection",
        next="if it asks clients for a certificate, name one with --client-cert",
    ),
    "server of an earlier release": Case(
        arguments="flags list",
        variables={"GATEKEEPER_SERVER": "{old}", "GATEKEEPER_TOKEN": "x"},
        code=1,
        says="there is no method '/gatekeeper.v1.AdminService/ListFlags' here",
        next="check the address, or use the command line of the server's release: `gatekeeper --version`",
    ),
    "server of something else": Case(
        arguments="evaluate alice --server {stranger}",
        code=1,
        says="{stranger} has no such method: it is no Gatekeeper server, or one of another release",
        next="check the address, or use the command line of the server's release: `gatekeeper --version`",
    ),
    "typing error of a command": Case(
        arguments="flgs", code=2, says="No such command 'flgs'. Did you mean 'flags'?", next="`gatekeeper --help`"
    ),
    "typing error of a command of a group": Case(
        arguments="flags set-rolout x 5",
        code=2,
        says="No such command 'set-rolout'. Did you mean 'set-rollout'?",
        next="`gatekeeper flags --help`",
    ),
    "typing error of an option": Case(
        arguments="flags list --perfix a",
        code=2,
        says="No such option '--perfix'.*'--prefix'",
        next="`gatekeeper flags list --help`",
    ),
    "context that is none": Case(
        arguments="flags list --context prod",
        code=3,
        says="no context is called 'prod'",
        next="`gatekeeper context list` shows all contexts",
    ),
}


@pytest.fixture(scope="module")
def words(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """What the words in braces stand for."""
    add_people(installation)
    here = f"127.0.0.1:{installation.server.port}"
    tokens = {
        "viewer": access_token(installation.dsn, "viewer"),
        "expired": access_token(installation.dsn, "viewer", age=timedelta(days=1)),
    }
    with ExitStack() as stack:
        old = stack.enter_context(serve({"a": True}))
        certified = stack.enter_context(tls_servers(tmp_path_factory.mktemp("tls")))
        yield {"here": here, "old": old.address, **tokens, **certified}


def add_people(installation: Installation) -> None:
    password_hash = Passwords(cost=MIN_COST).hash(PASSWORD, username="ann")
    for name in ("ann", "eve"):
        installation.execute(
            "INSERT INTO admin_user (username, password_hash, role, create_time, update_time, must_change_password)"
            " VALUES (%s, %s, 'editor', now(), now(), %s)",
            name,
            password_hash,
            name == "eve",
        )


@contextmanager
def tls_servers(folder: Path) -> Iterator[Mapping[str, str]]:
    """Serve nothing, by TLS: as usual, with the certificate of another host, and asking clients for a certificate."""
    issuer, other = Issuer(), folder / "other.crt"
    other.write_bytes(Issuer().pem)
    certificates = CertificateFolder(folder, issuer)
    elsewhere = issuer.issue(uri="urn:elsewhere")
    pair = (certificates.key.read_bytes(), certificates.chain.read_bytes())
    kinds = {
        "tls": certificates.credentials,
        "other_host": grpc.ssl_server_credentials([(elsewhere.key, elsewhere.chain)]),
        "asking": grpc.ssl_server_credentials([pair], issuer.pem, require_client_auth=True),
    }
    server = grpc.server(ThreadPoolExecutor(1))
    ports = {name: server.add_secure_port("127.0.0.1:0", credentials) for name, credentials in kinds.items()}
    ports["stranger"] = server.add_insecure_port("127.0.0.1:0")
    server.start()
    files = {"ca": str(certificates.issuer_file), "other_ca": str(other)}
    yield {name: f"127.0.0.1:{port}" for name, port in ports.items()} | files
    server.stop(None)


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands in a folder, with nothing else in the environment than what is given."""

    home: Path

    def run(self, words: Sequence[str], *, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            env={"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "HOME": str(self.home), **variables},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def gatekeeper(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run(["gatekeeper", *arguments], **more)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_failure_is_one_line_and_says_what_to_do_next(case: Case, words: Mapping[str, str], shell: Shell) -> None:
    variables = {name: value.format_map(words) for name, value in case.variables.items()}

    said = shell.gatekeeper(*case.arguments.format_map(words).split(), stdin=case.stdin, **variables)

    assert said.stderr.count("\n") == 2, said.stderr
    what, then = said.stderr.splitlines()
    assert said.returncode == case.code, said.stderr
    assert re.search(case.says.format_map(words), what.removeprefix("gatekeeper: ")), what
    assert what.startswith("gatekeeper: ")
    assert then.startswith(f"next: {case.next.format_map(words)}"), then
    assert "canary" not in said.stdout + said.stderr
    assert ESCAPE not in said.stderr


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_to_be_run_next_runs_as_pasted(case: Case, words: Mapping[str, str], shell: Shell) -> None:
    """But `serve`, which goes on, and what asks for a password."""
    command = re.search(r"`(gatekeeper [^`]+)`", case.next.format_map(words))
    if command is None or re.match("gatekeeper (serve|login$|login --server|change-password)", command[1]):
        pytest.skip("nothing that ends by itself")
    variables = {name: value.format_map(words) for name, value in case.variables.items()}

    said = shell.run(["sh", "-c", command[1]], **variables)

    assert (said.returncode, said.stderr) == (0, "")


def test_without_arguments_the_help_ends_with_how_to_begin(shell: Shell) -> None:
    said = shell.gatekeeper()

    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("Usage: ")
    assert " serve --demo` starts a server, and prints what to try with it\n" in said.stderr


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}], ids=str)
def test_a_terminal_gets_no_colour_whatever_the_environment_says(
    variables: dict[str, str], words: Mapping[str, str], shell: Shell
) -> None:
    written = on_a_terminal(shell, "flags", "list", **AS_VIEWER, **variables, words=words)
    written += on_a_terminal(shell, "flags", "get", "no.such", **AS_VIEWER, **variables, words=words)

    assert "FLAG_NOT_FOUND" in written
    assert ESCAPE not in written


def on_a_terminal(shell: Shell, *arguments: str, words: Mapping[str, str], **variables: str) -> str:
    """Run a command on a terminal of its own, and return what it has written there."""
    ours, theirs = pty.openpty()
    environment = {"HOME": str(shell.home), **{name: value.format_map(words) for name, value in variables.items()}}
    command = [sys.executable, "-m", "gatekeeper_grpc", *arguments]
    with os.fdopen(ours, "rb", buffering=0) as master:
        process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
        process.wait(TIMEOUT_S)
        os.close(theirs)
        written = b""
        with suppress(OSError):  # EIO: that was all.
            while content := master.read(1 << 16):
                written += content
    return written.decode()


def test_a_pipe_whose_reader_leaves_is_no_error_worth_a_traceback(
    installation: Installation, words: Mapping[str, str], shell: Shell
) -> None:
    for number in range(300):
        created(installation.admin, key=f"pipe-{number}", description=1_000 * "x")
    variables = {name: value.format_map(words) for name, value in AS_VIEWER.items()}
    line = "gatekeeper flags list -o json | head -c 100"

    said = shell.run(["sh", "-c", line], **variables)

    assert (said.returncode, said.stderr, len(said.stdout)) == (0, "", 100)
