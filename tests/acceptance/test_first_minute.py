"""The first minute of a newcomer: what a terminal of 80x24 shows, and every printed line pasted into a shell.

The wheel is installed below a path with spaces and letters that are not ASCII; buf and grpcurl are on no PATH.
"""

import os
import re
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.support.ports import free_port
from tests.support.processes import START_TIMEOUT_S, TIMEOUT_S, copied
from tests.support.terminals import ROWS, Terminal, on_terminal, rows
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
FREE_PORTS = {
    "GATEKEEPER_LISTEN": "127.0.0.1:0",
    "GATEKEEPER_HEALTH_LISTEN": "127.0.0.1:0",
    "GATEKEEPER_OPS_LISTEN": "127.0.0.1:0",
    "GATEKEEPER_BCRYPT_COST": "10",
    "GATEKEEPER_DRAIN_S": "0",
}
FIRST_LINE, LAST_LINE = "# Gatekeeper serves on ", "# Docs: "


@dataclass(frozen=True, slots=True)
class Screen:
    """What a start has written to its terminal."""

    terminal: Terminal

    @property
    def before_block(self) -> list[str]:
        return [line for line in self.terminal.text.partition(FIRST_LINE)[0].splitlines() if line]

    @property
    def block(self) -> list[str]:
        return (FIRST_LINE + self.terminal.text.partition(FIRST_LINE)[2]).splitlines()


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """A person with a shell in a folder, who has installed the wheel there."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "HOME": str(self.folder / "home"), "GATEKEEPER_DATA_DIR": str(self.folder / "data")}

    @contextmanager
    def serving(self, **settings: str) -> Iterator[Screen]:
        """Run `gatekeeper serve --demo` on a terminal, until the last line of the block is there."""
        command: list[str | Path] = [self.folder / ".venv" / "bin" / "gatekeeper", "serve", "--demo"]
        environment = {**self.environment, **FREE_PORTS, **settings}
        with on_terminal(command, environment=environment, folder=self.folder) as terminal:
            assert eventually(lambda: ends_with(terminal, LAST_LINE), timeout_s=START_TIMEOUT_S), terminal.text
            yield Screen(terminal)

    def paste(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line in another shell, which stands elsewhere, with standard input closed."""
        shell = ["sh", "-c", f"exec 0<&-\n{line}"]
        return subprocess.run(
            shell, env=self.environment, cwd="/", capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    folder = tmp_path_factory.mktemp("first") / "Łódź proj ü"
    (folder / "home").mkdir(parents=True)
    install_wheel(folder / ".venv", scratch=tmp_path_factory.mktemp("wheel"))
    return Newcomer(folder=folder)


@pytest.fixture(scope="module")
def first_start(newcomer: Newcomer) -> Iterator[Screen]:
    with newcomer.serving() as terminal:
        yield terminal


def install_wheel(venv: Path, *, scratch: Path) -> None:
    """Install our own wheel as a user would; what it depends on is lent by the environment of the tests."""
    tools, python = Path(sys.executable).parent, venv / "bin" / "python"
    subprocess.run(
        [tools / "hatchling", "build", "-t", "wheel", "-d", scratch], cwd=ROOT, check=True, capture_output=True
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (wheel,) = scratch.glob("gatekeeper_grpc-*.whl")
    install: list[str | Path] = [
        tools / "uv",
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--python",
        python,
        wheel,
    ]
    subprocess.run(install, check=True)
    packages = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    lent = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(packages.strip(), "lent.pth").write_text(lent, encoding="utf-8")


def ends_with(terminal: Terminal, beginning: str) -> bool:
    """Whether a whole line begins so."""
    return any(line.startswith(beginning) and line.endswith("\n") for line in terminal.text.splitlines(keepends=True))


def commands(terminal: Screen) -> list[str]:
    return [line for line in terminal.block if line and not line.startswith("#")]


def test_the_start_is_quiet_and_ends_with_one_block_on_the_last_screen(first_start: Screen) -> None:
    said_before = [re.sub(r"password \S+$|/.*", "...", line) for line in first_start.before_block]

    assert said_before == ["First admin user: admin, ...", "(printed once, stored in ..."]
    assert len(first_start.block) <= 14
    assert rows(first_start.before_block + first_start.block) < ROWS


def test_the_last_screen_says_where_the_password_is(first_start: Screen, newcomer: Newcomer) -> None:
    kept = newcomer.folder / "data" / "admin_password"

    assert f"# Admin user: admin. Password: kept in {kept}" in first_start.block
    assert kept.read_text().strip() in first_start.before_block[0]


def test_each_printed_line_succeeds_in_a_shell_without_standard_input(first_start: Screen, newcomer: Newcomer) -> None:
    evaluate, login, set_rollout, explain = commands(first_start)

    pasted = [newcomer.paste(line) for line in (evaluate, login, set_rollout, explain)]

    assert [(one.returncode, one.stderr) for one in pasted] == [(0, "")] * 4
    assert "new_checkout  false" in pasted[0].stdout
    assert "as admin, role admin" in pasted[1].stdout
    assert "rollout:     50%" in pasted[2].stdout
    assert "new_checkout  true   SPLIT" in pasted[3].stdout


def test_prose_of_the_block_is_a_comment_to_a_shell(first_start: Screen, newcomer: Newcomer) -> None:
    prose = [line for line in first_start.block if line.startswith("#")]

    assert newcomer.paste("\n".join(prose)).returncode == 0


def test_twin_a_second_start_whose_log_level_is_set_is_not_quiet(
    newcomer: Newcomer, first_started_dir: Path, tmp_path: Path
) -> None:
    data_dir = copied(first_started_dir, tmp_path)

    odd = {"GATEKEEPER_LOG_LEVEL": "info", "GATEKEEPER_DATA_DIR": str(data_dir), "GATEKEEPER_WORKRES": "2"}

    with newcomer.serving(**odd) as second:
        assert any("open_files" in line for line in second.before_block)
        (unknown,) = (line for line in second.before_block if "unknown_setting" in line)
        assert "GATEKEEPER_WORKRES" in unknown
        assert "GATEKEEPER_WORKERS" in unknown
        assert not any("password" in line for line in second.before_block)
        assert len(commands(second)) == 4


def test_a_quiet_start_with_tls_counts_failed_handshakes_too(
    newcomer: Newcomer, first_started_dir: Path, tmp_path: Path
) -> None:
    folder, ops_port = CertificateFolder(tmp_path), free_port()
    data_dir = copied(first_started_dir, tmp_path)
    settings = {"GATEKEEPER_DATA_DIR": str(data_dir), "GATEKEEPER_OPS_LISTEN": f"127.0.0.1:{ops_port}"}

    with newcomer.serving(**settings, **folder.variables) as terminal:
        port = int(re.findall(r":(\d+)", terminal.block[0])[0])
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain:
            plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            plain.recv(1)

        assert eventually(lambda: 'failed_handshakes_total{cause="no_tls"} 1.0' in metrics(ops_port))


def metrics(ops_port: int) -> str:
    with urlopen(f"http://127.0.0.1:{ops_port}/metrics", timeout=TIMEOUT_S) as response:
        return str(response.read().decode())
