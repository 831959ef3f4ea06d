"""Every command under wrong settings: one line that names the variable, exit code 1, no secret, no traceback."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper_grpc.cli import main as cli
from gatekeeper_grpc.cli import operator_settings
from tests.support.processes import KEYS, run

CANARY = "canary7f3a"
COMMANDS = (
    ("serve",),
    ("worker", "--number", "1", "--report-to", "0", "--supervisor", "1"),
    ("migrate", "up"),
    ("migrate", "status"),
    ("audit", "verify"),
    ("audit", "anchor"),
    ("db-url",),
    ("restore-finish",),
    ("keys", "rotate"),
    ("grants", "--role", "server"),
    ("config",),
)
_UNREADABLE_URLS = (
    f"postgresql://own:{CANARY}%cd@127.0.0.1:5432/db",  # pragma: allowlist secret
    f"postgresql://own:{CANARY}%zz@127.0.0.1:5432/db",  # pragma: allowlist secret
    f"postgresql://own:{CANARY}%00@127.0.0.1:5432/db",  # pragma: allowlist secret
    f"postgresql://own:{CANARY} cd@127.0.0.1:5432/db",
    f"postgresql://own:{CANARY}@{CANARY}@127.0.0.1:5432/db",
    f"postgresql://own:{CANARY}/cd@127.0.0.1:5432/db",
    f"postgresql://own:12/{CANARY}@127.0.0.1:5432/db",
    f'"postgresql://own:{CANARY}@127.0.0.1:5432/db"',
    f"'postgresql://own:{CANARY}@127.0.0.1:5432/db'",
    f"\npostgresql://own:{CANARY}@127.0.0.1:5432/db",
    f"mysql://own:{CANARY}@127.0.0.1:5432/db",
    f"postgresql+psycopg://own:{CANARY}@127.0.0.1:5432/db",
    f"POSTGRESQL://own:{CANARY}@127.0.0.1:5432/db",
    f"postgres:/own:{CANARY}@127.0.0.1:5432/db",
    f"postgresql://own:{CANARY}@[::1:5432/db",
    f"postgresql://own:{CANARY}@127.0.0.1:99999/db",
    f"postgresql://own:{CANARY}@127.0.0.1:54a/db",
    f"postgresql://own:{CANARY}@127.0.0.1:5432,127.0.0.1:0/db",
    f"postgresql://own@127.0.0.1:5432/db?passwort={CANARY}",
    f"postgresql://own:{CANARY}@127.0.0.1:5432/db?options=-csearch_path=flags",
    f"host=127.0.0.1 password={CANARY} cd dbname=db",
    f"host=127.0.0.1 password={CANARY} c=d dbname=db",
    f"host=127.0.0.1 password='{CANARY}",
    f"own:{CANARY}@127.0.0.1:5432/db",
    f"{CANARY}",
    " ",
)
_UNREADABLE_REDIS_URLS = (
    f"http://own:{CANARY}@127.0.0.1:6379",
    f"redis://own:{CANARY}@{CANARY}@127.0.0.1:6379",
    f"redis://own:{CANARY}/cd@127.0.0.1:6379",
    f"redis://own:{CANARY}@127.0.0.1:63a",
    f"redis://127.0.0.1/{CANARY}",
    f"redis://own:{CANARY}@127.0.0.1?unknown=1",
    f"redis+cluster://own:{CANARY}@127.0.0.1",
    f'"redis://own:{CANARY}@127.0.0.1"',
)
# Refused when the settings are read, by every command alike, before it does anything.
BROKEN = (
    *(("DATABASE_URL", url) for url in _UNREADABLE_URLS),
    *(("READ_DATABASE_URL", url) for url in _UNREADABLE_URLS[:4]),
    *(("GATEKEEPER_MIGRATION_DATABASE_URL", url) for url in _UNREADABLE_URLS[4:8]),
    *(("REDIS_URL", url) for url in _UNREADABLE_REDIS_URLS),
    ("GATEKEEPER_WORKERS", CANARY),
    ("GATEKEEPER_DRAIN_S", CANARY),
)
# Only a connection, or a use, shows what is wrong with these; `serve` answers for all.
BROKEN_IN_USE = (
    ("DATABASE_URL", f"postgresql://own:{CANARY}@127.0.0.1:1/db?sslmode={CANARY}", "sslmode"),
    ("GATEKEEPER_JWT_KEYS", CANARY, "GATEKEEPER_JWT_KEYS"),
    ("GATEKEEPER_DATA_KEYS", f"k:{CANARY}", "GATEKEEPER_DATA_KEYS"),
    ("GATEKEEPER_AUDIT_SIGNING_KEY", CANARY, "GATEKEEPER_AUDIT_SIGNING_KEY"),
)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A command configures the logs of its whole process, which here is pytest."""
    monkeypatch.setattr(operator_settings, "configure_logs", lambda **_settings: None)
    monkeypatch.setenv("GATEKEEPER_DATA_DIR", str(tmp_path))
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_shows_a_secret_or_a_traceback_of_a_broken_setting(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for variable, value in BROKEN:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["gatekeeper", *command])
            patch.setenv(variable, value)
            code = cli.run()
        printed, complaint = capfd.readouterr()
        is_one_line = complaint.count("\n") == 1 and complaint.startswith("gatekeeper: ")
        if code != 1 or printed or CANARY in complaint or variable not in complaint or not is_one_line:
            wrong.append((variable, value, code, printed, complaint))
    assert wrong == []
    assert len(BROKEN) >= 40


@pytest.mark.parametrize(("variable", "value", "named"), BROKEN_IN_USE, ids=[named for *_, named in BROKEN_IN_USE])
def test_serve_shows_no_secret_of_a_setting_that_only_its_use_proves_wrong(
    tmp_path_factory: pytest.TempPathFactory, variable: str, value: str, named: str
) -> None:
    settings = {"DATABASE_URL": "postgresql://own@127.0.0.1:1/db", **KEYS, variable: value, "GATEKEEPER_WORKERS": "2"}

    code, printed, complaints = run("serve", data_dir=tmp_path_factory.mktemp("data"), **settings)

    assert code == 1
    assert named in complaints
    assert "Traceback" not in complaints
    assert CANARY not in printed + complaints


@pytest.mark.parametrize("command", [("migrate", "status"), ("audit", "verify"), ("db-url",)], ids=" ".join)
def test_an_empty_variable_counts_as_absent(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATABASE_URL", "READ_DATABASE_URL", "REDIS_URL", "GATEKEEPER_JWT_KEYS", "GATEKEEPER_PG_BIN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("GATEKEEPER_READY_MAX_STALENESS_S", "")
    monkeypatch.setattr(sys, "argv", ["gatekeeper", *command])

    assert cli.run() == 1
    assert capfd.readouterr().err.startswith("gatekeeper: no embedded database runs in ")
