"""The command line: what commands say about themselves, how failures end, and the lines to paste."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from gatekeeper_grpc.cli import main as cli
from gatekeeper_grpc.cli import operator_settings
from gatekeeper_grpc.cli.lazy import LazyGroup
from gatekeeper_grpc.config.program import program
from gatekeeper_grpc.config.settings import Settings, load_settings, settings_markdown, variable_of
from gatekeeper_grpc.lifecycle.demo import Demo
from gatekeeper_grpc.lifecycle.secrets_file import ADMIN_PASSWORD, store_secret
from gatekeeper_grpc.lifecycle.try_it import try_it

COLUMNS = 80
SECRET = "canary-7f3a-canary-7f3a-canary-7f3a"


@pytest.fixture(autouse=True)
def own_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands configure the logs of their whole process, which here is pytest."""
    monkeypatch.setattr(operator_settings, "configure_logs", lambda **_settings: None)


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
    assert [line for line in result.stdout.splitlines() if len(line) > COLUMNS] == []


def test_list_of_commands_says_of_each_what_its_own_help_says() -> None:
    assert isinstance(cli.gatekeeper, LazyGroup)

    said = {name: entry.summary for name, entry in cli.gatekeeper.entries.items()}

    assert said == {name: entry.load().get_short_help_str(200) for name, entry in cli.gatekeeper.entries.items()}


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("fla", ["flags"]), ("flags set-", ["set-rollout"]), ("wor", []), ("flags list --pre", ["--prefix"])],
)
def test_commands_and_options_are_completed_but_not_hidden_ones(typed: str, completed: list[str]) -> None:
    variables = {"COMP_WORDS": f"gatekeeper {typed}", "COMP_CWORD": str(typed.count(" ") + 1)}

    answer = CliRunner().invoke(
        cli.gatekeeper, env={**variables, "_GATEKEEPER_COMPLETE": "bash_complete"}, prog_name="gatekeeper"
    )

    assert [line.partition(",")[2] for line in answer.stdout.splitlines() if line] == completed


def test_names_are_completed_without_importing_commands() -> None:
    code = (
        "import atexit; from gatekeeper_grpc.cli import main; atexit.register(lambda: print(*sys.modules)); main.run()"
    )
    variables = {"COMP_WORDS": "gatekeeper ", "COMP_CWORD": "1", "_GATEKEEPER_COMPLETE": "bash_complete"}
    command = [sys.executable, "-c", f"import sys; sys.argv = ['gatekeeper']; {code}"]

    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    assert "plain,flags\n" in done.stdout
    assert "click" in done.stdout.split()
    assert {"psycopg", "grpc", "gatekeeper_grpc.cli.client.flags"} & set(done.stdout.split()) == set()


FORBIDDEN = {
    *("psycopg", "pydantic", "pydantic_settings", "structlog", "rich", "yaml", "grpc", "google.protobuf"),
    "gatekeeper_grpc.config.settings",
}
ALL_HELP = """
import sys
from click.testing import CliRunner
from gatekeeper_grpc.cli import main as cli
def explain(group, *path):
    for name in group.commands:
        command = group.commands[name]
        assert CliRunner().invoke(cli.gatekeeper, [*path, name, "--help"]).exit_code == 0, (*path, name)
        if hasattr(command, "commands"):
            explain(command, *path, name)
        else:
            print(command.callback.__module__)
client = next(iter(cli.gatekeeper._sections.values()))
for name in client:
    command = cli.gatekeeper.commands[name]
    assert CliRunner().invoke(cli.gatekeeper, [name, "--help"]).exit_code == 0, name
    explain(command, name) if hasattr(command, "commands") else print(command.callback.__module__)
print(*sys.modules, file=sys.stderr)
"""


def test_no_client_command_needs_the_server_or_grpc_to_explain_itself() -> None:
    """Each is a module of cli/client/: of those, `make layers` sees what they import when they call."""
    done = subprocess.run([sys.executable, "-c", ALL_HELP], capture_output=True, text=True, check=True)

    modules = done.stdout.split()
    assert len(modules) > len(invoke("--help").stdout.splitlines())
    assert [module for module in modules if not module.startswith("gatekeeper_grpc.cli.client.")] == []
    assert FORBIDDEN & set(done.stderr.split()) == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_completes_in_a_shell_asks_this_program(shell: str) -> None:
    assert "_GATEKEEPER_COMPLETE" in invoke("completion", shell).stdout


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
        (["restart"], 2, "gatekeeper: No such command 'restart'.\nnext: `gatekeeper --help` explains it"),
        (["flgas"], 2, "gatekeeper: No such command 'flgas'. Did you mean 'flags'?\nnext: `gatekeeper --help`"),
        (
            ["flags", "rm"],
            2,
            "gatekeeper: No such command 'rm'. Did you mean 'delete'?\nnext: `gatekeeper flags --help`",
        ),
        (
            ["audit", "list"],
            2,
            "gatekeeper: No such command 'list'. Did you mean 'audit-log list'?\nnext: `gatekeeper audit --help`",
        ),
        (["migrate", "sideways"], 2, "gatekeeper: No such command 'sideways'.\nnext: `gatekeeper migrate --help`"),
        (
            ["migrate", "up", "--to", "x"],
            2,
            "gatekeeper: Invalid value for '--to': 'x' is not a valid integer.\nnext: ",
        ),
    ],
    ids=[
        "no database to join",
        "no database to migrate",
        "unknown command",
        "misspelt command",
        "command of other tools",
        "command of another group",
        "unknown command of a group",
        "bad option",
    ],
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
    assert errors.replace(f"`{program()} ", "`gatekeeper ").startswith(complaint)


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

    monkeypatch.setattr(operator_settings, "load_settings", fail)
    monkeypatch.setattr(sys, "argv", ["gatekeeper", "config"])

    assert cli.run() == 1
    assert capsys.readouterr().err.splitlines()[-1] == "RuntimeError: a bug"


def test_config_check_accepts_settings_that_can_be_served_with(tmp_path: Path) -> None:
    result = invoke("config", "--check", GATEKEEPER_DATA_DIR=str(tmp_path))

    assert (result.exit_code, result.stdout, list(tmp_path.iterdir())) == (0, "the settings are valid\n", [])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"GATEKEEPER_LISTEN": "127.0.0.1:99999"}, "GATEKEEPER_LISTEN: '127.0.0.1:99999' must be host:port"),
        ({"GATEKEEPER_WORKRES": "3"}, "unknown: GATEKEEPER_WORKRES"),
        ({"GATEKEEPER_JWT_KEYS": SECRET}, "GATEKEEPER_JWT_KEYS: "),
        ({"DATABASE_URL": "postgresql://db/gatekeeper"}, "GATEKEEPER_JWT_KEYS is not set"),
        ({"GATEKEEPER_ADMIN_PASSWORD": "short"}, "GATEKEEPER_ADMIN_PASSWORD must be 12 to"),
    ],
    ids=["bad address", "unknown variable", "bad key", "missing key", "short password"],
)
def test_config_check_refuses_what_serve_would_refuse_or_ignore(
    settings: dict[str, str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    # Where somebody has run `make run`, the folder of the checkout has keys.
    for name, value in {"GATEKEEPER_DATA_DIR": str(tmp_path), **settings}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["gatekeeper", "config", "--check"])

    assert cli.run() == 1

    errors = capsys.readouterr().err
    assert complaint in errors
    assert SECRET not in errors


@pytest.mark.parametrize("name", ["data", 'it\'s a $HOME; of "data"', "Łódź proj ü"])
def test_login_line_reads_the_kept_password_from_any_data_directory(tmp_path: Path, name: str) -> None:
    store_secret(tmp_path / name, ADMIN_PASSWORD, SECRET)

    block = try_it(load_settings(data_dir=tmp_path / name), Demo(accepts_kept_password=True), port=50051)

    login = next(line for line in block.splitlines() if " login " in line)
    command, _, file = login.partition(" < ")
    assert shlex.split(command)[1:] == ["login", "--password-stdin"]
    assert Path(*shlex.split(file)).read_text() == f"{SECRET}\n"


def test_login_line_without_a_kept_password_takes_the_operators(tmp_path: Path) -> None:
    block = try_it(load_settings(data_dir=tmp_path), Demo(accepts_set_password=True), port=50051)

    assert 'printf %s "$GATEKEEPER_ADMIN_PASSWORD" | ' in block


@pytest.mark.parametrize(
    ("listen", "server"),
    [
        ("127.0.0.1:50051", ""),
        ("0.0.0.0:50051", ""),
        ("[::]:50051", " --server '[::1]:50051'"),
        ("127.0.0.1:7", " --server 127.0.0.1:7"),
        ("unix:/run/my sock", " --server 'unix:/run/my sock'"),
    ],
)
def test_lines_to_paste_name_the_server_only_if_it_is_elsewhere(listen: str, server: str, tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, listen=listen)

    lines = try_it(settings, Demo(), port=settings.listen.port).splitlines()

    (evaluate,) = (line for line in lines if line.partition(" --server")[0].endswith("evaluate alice"))
    assert evaluate.partition("evaluate alice")[2] == server
    assert len(lines) <= 14
    assert sum(not line.startswith("#") for line in lines if line) == 4


def test_lines_to_paste_send_changes_to_the_listener_of_admins(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, admin_listen="127.0.0.1:0")

    lines = try_it(settings, Demo(has_flag=True), port=50051, admin_port=7).splitlines()

    commands = [line for line in lines if line and not line.startswith("#")]
    assert ["--server 127.0.0.1:7" in command for command in commands] == [False, True, True, False]
