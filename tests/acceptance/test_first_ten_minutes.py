"""The first ten minutes of a new user, on terminals of 80x24: each command succeeds, and each screen can be read.

What they show is written to dist/first-ten-minutes.txt, for the documentation.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.processes import TIMEOUT_S
from tests.support.terminals import COLUMNS, ROWS, Terminal, on_terminal, rows

ROOT = Path(__file__).parents[2]
TRANSCRIPT = ROOT / "dist" / "first-ten-minutes.txt"
SERVE, WATCH, LOGIN = "gatekeeper serve --demo", "gatekeeper watch --flag new_search", "gatekeeper login"
WATCH_BEGINS, CHANGE = "watching from revision", "gatekeeper flags set-rollout new_search 50 --reason 'no complaints'"
PREVIEW = "gatekeeper flags set-rollout new_search 25 --preview users.csv --yes --reason 'first users'"
DIFF, AGAIN = "gatekeeper diff -f flags.yaml", "gatekeeper apply -f flags.yaml"
USERS = 12
# In their order. A mistake is here with its exit code: what it tells to do next is done.
STEPS = (
    ("gatekeeper evaluate alice", 0),
    ("gatekeeper flags list", 5),
    (LOGIN, 0),
    ("gatekeeper whoami", 0),
    ("gatekeeper flgs", 2),
    ("gatekeeper flags create new_search --owner search --enabled --tag web", 0),
    ("gatekeeper segments create beta --condition 'plan in pro team'", 0),
    ("gatekeeper flags update new_search --segment beta=true", 0),
    ("gatekeeper flags targets add new_search bob --value true", 0),
    (PREVIEW, 0),
    ("gatekeeper evaluate alice --attr plan=pro --explain", 0),
    ("gatekeeper evaluate bob --explain", 0),
    ("gatekeeper flags get new_serch", 3),
    (CHANGE, 0),
    ("gatekeeper flags list", 0),
    ("gatekeeper flags history new_search", 0),
    ("gatekeeper audit-log verify", 0),
    ("gatekeeper export --to flags.yaml", 0),
    ("gatekeeper flags delete new_search --yes", 0),
    (DIFF, 0),
    ("gatekeeper apply -f flags.yaml --reason 'as exported'", 0),
    (AGAIN, 0),
    ("gatekeeper logout", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A command, what its terminal has shown, and its exit code."""

    line: str
    shown: str
    code: int | None = None

    @property
    def hints(self) -> list[str]:
        """The commands in what it has told to do next."""
        told = re.findall(r"^next: (.*)", self.shown, re.MULTILINE)
        return [command for line in told for command in re.findall(r"`([^`]+)`", line)]


@dataclass(slots=True)
class Desk:
    """A person's terminals, on one of which the server runs."""

    home: Path
    port: int
    screens: list[Screen] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        own = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "HOME": str(self.home), "TERM": "xterm-256color"}
        listening = {
            "GATEKEEPER_LISTEN": f"127.0.0.1:{self.port}",
            "GATEKEEPER_HEALTH_LISTEN": "127.0.0.1:0",
            "GATEKEEPER_OPS_LISTEN": "127.0.0.1:0",
            "GATEKEEPER_BCRYPT_COST": "10",
            "GATEKEEPER_DRAIN_S": "0",
            "GATEKEEPER_DATA_DIR": str(self.home / "data"),
        }
        return {**own, **listening, "GATEKEEPER_SERVER": f"127.0.0.1:{self.port}"}

    @contextmanager
    def open(self, line: str) -> Iterator[Terminal]:
        """Run a line in a shell on a terminal of its own, until the end of the block."""
        command = ["sh", "-c", f"exec {line}"]
        with on_terminal(command, environment=self.environment, folder=self.home) as terminal:
            yield terminal

    def do(self, line: str) -> Screen:
        """Run a line to its end, and type the password if it is asked for."""
        with self.open(line) as terminal:
            if line == LOGIN:
                assert terminal.shows("Password of admin on "), terminal.text
                terminal.type((self.home / "data" / "admin_password").read_text().strip())
            screen = Screen(line=line, shown=self.said(terminal.whole()), code=terminal.process.returncode)
        self.screens.append(screen)
        return screen

    def said(self, text: str) -> str:
        """Return a text as it is where the usual port is free, and folders have names of usual length."""
        address = f"127.0.0.1:{self.port}"
        usual = {f" --server {address}": "", address: "127.0.0.1:50051", str(self.home): "/home/ann", str(ROOT): "/src"}
        for ours, theirs in usual.items():
            text = text.replace(ours, theirs)
        return text


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """After ten minutes; the server still runs."""
    desk = Desk(home=tmp_path_factory.mktemp("home"), port=free_port())
    desk.home.joinpath("users.csv").write_text("user_id\n" + "".join(f"user-{n}\n" for n in range(USERS)))
    with ExitStack() as stack:
        server = stack.enter_context(desk.open(SERVE))
        assert server.shows("README.md\n"), server.text
        desk.screens.append(Screen(line=SERVE, shown=desk.said(server.text)))  # What follows is its log.
        watcher = stack.enter_context(desk.open(WATCH))
        for line, _ in STEPS:
            if line == CHANGE:
                assert watcher.shows(WATCH_BEGINS), watcher.text
            desk.do(line)
        assert watcher.shows("new_search  updated"), watcher.text
        desk.screens.append(Screen(line=WATCH, shown=desk.said(watcher.text)))
        write(desk.screens)
        yield desk


def write(screens: list[Screen]) -> None:
    TRANSCRIPT.parent.mkdir(exist_ok=True)
    TRANSCRIPT.write_text("\n".join(f"$ {screen.line}\n{screen.shown}" for screen in screens), encoding="utf-8")


def test_each_command_of_the_first_ten_minutes_does_what_it_should(desk: Desk) -> None:
    ended = [(screen.line, screen.code) for screen in desk.screens if screen.code is not None]

    assert ended == [*STEPS], TRANSCRIPT.read_text()


def test_each_screen_fits_the_terminal_and_shows_no_traceback(desk: Desk) -> None:
    for screen in desk.screens:
        lines = screen.shown.splitlines()
        assert [line for line in lines if len(line) > COLUMNS] == [], screen.line
        assert rows(lines) < ROWS, screen.line
        assert "Traceback" not in screen.shown
        assert "\x1b" not in screen.shown


def test_twin_a_table_that_is_too_wide_is_cut_and_says_so(desk: Desk) -> None:
    (cut,) = (screen.shown for screen in desk.screens if screen.line == "gatekeeper flags history new_search")
    desk.do(LOGIN)
    wide = desk.do("gatekeeper flags history new_search -o wide").shown
    del desk.screens[-2:]

    assert max(map(len, wide.splitlines())) > COLUMNS
    assert cut.endswith("-o wide shows what is cut\n")


def test_an_explanation_says_why_and_a_history_who(desk: Desk) -> None:
    shown = {screen.line: screen.shown for screen in desk.screens}

    assert "segment beta" in shown["gatekeeper evaluate alice --attr plan=pro --explain"]
    assert "the user is a target" in shown["gatekeeper evaluate bob --explain"]
    assert "admin:admin" in shown["gatekeeper flags history new_search"]
    assert "the head is" in shown["gatekeeper audit-log verify"]


def test_a_preview_counts_and_a_file_brings_a_deleted_flag_back(desk: Desk) -> None:
    shown = {screen.line: screen.shown for screen in desk.screens}

    assert f"{USERS} users" in shown[PREVIEW]
    assert "new_search" in shown[DIFF]
    assert "new_search" not in shown[AGAIN]


def test_a_change_arrives_in_the_second_terminal(desk: Desk) -> None:
    (watched,) = (screen for screen in desk.screens if screen.line == WATCH)

    assert re.search(r"^\d+  new_search  updated$", watched.shown, re.MULTILINE)


def test_what_is_told_to_be_done_next_runs_as_pasted(desk: Desk) -> None:
    hints = {hint for screen in desk.screens for hint in screen.hints}
    assert hints >= {LOGIN, "gatekeeper --help", "gatekeeper flags list"}

    desk.do(LOGIN)
    del desk.screens[-1:]
    for hint in hints - {LOGIN}:
        done = subprocess.run(
            ["sh", "-c", hint],
            env=desk.environment,
            cwd=desk.home,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, hint


def test_the_password_is_never_on_a_screen_but_the_first(desk: Desk) -> None:
    password = (desk.home / "data" / "admin_password").read_text().strip()
    server, *others = desk.screens

    assert password in server.shown
    assert all(password not in screen.shown for screen in others)
