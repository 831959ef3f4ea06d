"""The command line: what commands say about themselves, how failures end, and the lines to paste."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from gatekeeper_grpc.cli import main as cli
from gatekeeper_grpc.config import Settings, load_settings, settings_markdown, variable_of
from gatekeeper_grpc.lifecycle.secrets_file import ADMIN_PASSWORD, store_secret
from gatekeeper_grpc.lifecycle.try_it import try_it

SECRET = "canary-7f3a-canary-7f3a-canary-7f3a"


@pytest.fixture(autouse=True)
def own_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands configure the logs of their whole process, which here is pytest."""
    monkeypatch.setattr(cli, "configure_logs", lambda **_settings: None)


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli.gatekeeper, arguments, env=environment)


def paths(group: click.Group, *prefix: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from paths(command, *prefix, name)


@pytest.mark.parametrize("path", [(), *paths(cli.gatekeeper)], ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself_with_nothing_running(path: tuple[str, ...], option: str, tmp_path: Path) -> None:
    result = invoke(*path, option, GATEKEEPER_DATA_DIR=str(tmp_path))

    assert (result.exit_code, list(tmp_path.iterdir())) == (0, [])
    assert result.stdout.startswith(f"Usage: {' '.join(['gatekeeper', *path])}")


def test_version_is_the_packages() -> None:
    assert invoke("--version").stdout == f"gatekeeper, version {version('gatekeeper-grpc')}\n"


def test_config_prints_every_setting_with_its_present_value() -> None:
    printed = invoke("config", GATEKEEPER_DRAIN_S="2.5").stdout

    assert "GATEKEEPER_DRAIN_S=2.5\n" in printed
    assert [name for name in Settings.model_fields if f"{variable_of(name)}=" not in printed] == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", f"postgresql://u:{SECRET}@host/x"),
        ("GATEKEEPER_JWT_KEYS", SECRET),
        ("GATEKEEPER_ADMIN_PASSWORD", SECRET),
    ],
)
def test_config_masks_secrets(variable: str, value: str) -> None:
    printed = invoke("config", **{variable: value}).stdout

    assert f"{variable}=**********\n" in printed
    assert SECRET not in printed


def test_config_as_markdown_shows_the_defaults_whatever_is_set() -> None:
    assert invoke("config", "--markdown", GATEKEEPER_DRAIN_S="2.5").stdout == f"{settings_markdown()}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["db-url"], 1, "gatekeeper: no embedded database runs in "),
        (["migrate", "status"], 1, "gatekeeper: no embedded database runs in "),
        (["restart"], 2, "Error: No such command 'restart'."),
        (["migrate", "up", "--to", "x"], 2, "Error: Invalid value for '--to': 'x' is not a valid integer."),
    ],
    ids=["no database to join", "no database to migrate", "unknown command", "bad option"],
)
def test_failure_is_explained_on_standard_error_with_an_exit_code(
    arguments: list[str],
    code: int,
    complaint: str,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GATEKEEPER_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gatekeeper", *arguments])

    exit_code = cli.run()

    printed, errors = capsys.readouterr()
    assert (exit_code, printed) == (code, "")
    assert errors.splitlines()[-1].startswith(complaint)


def test_bad_setting_is_one_line_that_names_it_and_keeps_the_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEKEEPER_GRACE_S", SECRET)
    monkeypatch.setattr(sys, "argv", ["gatekeeper", "config"])

    assert cli.run() == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gatekeeper: GATEKEEPER_GRACE_S: ")
    assert SECRET not in line


def test_a_bug_is_reported_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "load_settings", fail)
    monkeypatch.setattr(sys, "argv", ["gatekeeper", "config"])

    assert cli.run() == 1
    assert capsys.readouterr().err.splitlines()[-1] == "RuntimeError: a bug"


# Stands in for buf: notes down its arguments and answers like Login.
FAKE_BUF = """
buf() { printf '%s\\n' "$@" >> calls; printf '{\\n  "accessToken": "a.b-c_d"\\n}\\n'; }
"""


@pytest.mark.parametrize("kept", [True, False], ids=["generated password", "password of the operator's"])
def test_lines_to_paste_log_in_whatever_the_data_directory_is_called(tmp_path: Path, *, kept: bool) -> None:
    odd = tmp_path / 'it\'s a $HOME; of "data"'
    if kept:
        store_secret(odd, ADMIN_PASSWORD, SECRET)
    lines = try_it(load_settings(data_dir=odd), port=1).splitlines()
    script = "\n".join([FAKE_BUF, *(line for line in lines[1:] if not line.startswith("grpcurl"))])

    environment = {"PATH": os.defpath, **({} if kept else {"GATEKEEPER_ADMIN_PASSWORD": SECRET})}
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, env=environment, check=True, capture_output=True)

    calls = (tmp_path / "calls").read_text().splitlines()
    asked = [json.loads(line) for line in calls if line.startswith("{")]
    assert asked[1] == {"username": "admin", "password": SECRET}
    assert "authorization: Bearer a.b-c_d" in calls
