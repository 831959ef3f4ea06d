"""The commands of docs/command-line.md run as they stand there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import Installation
from tests.support.commands import Run, Said, Stdin
from tests.support.markdown import FENCE
from tests.support.tls import Issuer

PAGE = Path(__file__).parents[3] / "docs" / "command-line.md"
DEFAULT = "127.0.0.1:50051"
PASSWORD = "canary-password-of-ann"
# By the variable that a line names: what lists the ids.
IDS = {"SESSION_ID": "sessions", "TOKEN_ID": "tokens", "KEY_ID": "client-keys"}


def lines() -> Iterator[str]:
    """The commands of the section for clients, without their comments."""
    section = PAGE.read_text(encoding="utf-8").partition("## Use flags\n")[2].partition("\n## ")[0]
    for block in FENCE.findall(section):
        yield from (line for line in block.splitlines() if line.startswith("gatekeeper "))


@pytest.fixture
def shell(as_admin: Run, run: Run, installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a line, with what it redirects, in a folder of its own, as an admin who types a password when asked."""
    monkeypatch.chdir(tmp_path)
    typist = Typist()
    monkeypatch.setattr("click.termui.hidden_prompt_func", typist.type)

    def shell(line: str) -> Said:
        line = line.replace(DEFAULT, f"127.0.0.1:{installation.server.port}")
        words = shlex.split(re.sub(r"\$(\w+)", lambda found: newest_id(as_admin, found[1]), line), comments=True)
        source = words[words.index("<") + 1] if "<" in words else ""
        target = words[words.index(">") + 1] if ">" in words else ""
        arguments = words[1 : min([words.index(mark) for mark in "<>" if mark in words], default=None)]
        stdin = Stdin(Path(source).read_text() if source else "", is_terminal=not source)
        said = (run if arguments[0] in ("login", "logout", "change-password") else as_admin)(*arguments, stdin=stdin)
        if target:
            Path(target).write_text(said.printed)
        return said

    return shell


class Typist:
    """Types the password, or a new one, and repeats what it typed."""

    def __init__(self) -> None:
        self._typed = ""

    def type(self, prompt: str) -> str:
        if not prompt.startswith("Repeat"):
            self._typed = f"{PASSWORD}-2" if prompt.startswith("New") else PASSWORD
        return self._typed


def newest_id(as_admin: Run, variable: str) -> str:
    return as_admin(IDS[variable], "list", "-o", "name").printed.split()[-1]


def prepare(as_admin: Run, folder: Path) -> None:
    """Make what the page assumes: flags, admin users, and files."""
    as_admin("flags", "create", "new_checkout", "--tag", "checkout")
    as_admin("flags", "enable", "new_checkout")
    as_admin("admins", "create", "ann", "--password-stdin", stdin=PASSWORD)
    as_admin("admins", "set-password", "admin", "--password-stdin", stdin=PASSWORD)
    (folder / "password").write_text(PASSWORD)
    (folder / "users.csv").write_text("user_id,plan\ncy,pro\n")
    (folder / "users.txt").write_text("cy\ndan\n")
    (folder / "ca.pem").write_bytes(Issuer().pem)
    (folder / "key.json").write_text(as_admin("client-keys", "create", "page", "-o", "json").printed)


def test_every_command_of_the_page_runs(
    shell: Run, as_admin: Run, run: Run, installation: Installation, tmp_path: Path
) -> None:
    prepare(as_admin, tmp_path)
    installation.execute("UPDATE usage_coverage SET since = since - interval '1 year'")
    run("login", "--password-stdin", stdin=PASSWORD)
    (tmp_path / "token").write_text(run("tokens", "create", "page").printed)

    failed = {}
    for line in lines():
        if (said := shell(line)).code:
            failed[line] = said.complaint

    assert not failed, failed
