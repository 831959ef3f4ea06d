"""`gatekeeper migrate` on a database that nobody has migrated."""

from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from gatekeeper_grpc.cli import main as cli
from gatekeeper_grpc.cli import operator_settings
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.store.migrations.files import default_folder, load_migrations
from tests.support.databases import empty_database

LABELS = [migration.label for migration in load_migrations(default_folder())]
NEWEST = len(LABELS)


@pytest.fixture
def empty(postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The DSN of a database without a schema, which is also DATABASE_URL."""
    monkeypatch.setattr(operator_settings, "configure_logs", lambda **_settings: None)
    with capture_logs(), empty_database(postgres) as dsn:
        monkeypatch.setenv("DATABASE_URL", dsn)
        yield dsn


def migrate(*arguments: str) -> list[str]:
    """The lines that `gatekeeper migrate` prints."""
    result = CliRunner().invoke(cli.gatekeeper, ["migrate", *arguments])
    if isinstance(result.exception, GatekeeperError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def states() -> list[list[str]]:
    return [line.split() for line in migrate("status")]


def test_up_applies_what_is_missing_and_says_what_then_nothing(empty: str) -> None:
    assert migrate("up") == [f"applied {label}" for label in LABELS]
    assert migrate("up") == []


def test_up_to_a_version_stops_there(empty: str) -> None:
    assert migrate("up", "--to", "0") == []
    assert states() == [[label, "pending"] for label in LABELS]


@pytest.mark.parametrize(("option", "value"), [("--steps", NEWEST), ("--to", 0)])
def test_down_reverts_newest_first(empty: str, option: str, value: int) -> None:
    migrate("up")

    assert migrate("down", option, str(value)) == [f"reverted {label}" for label in reversed(LABELS)]
    assert states() == [[label, "pending"] for label in LABELS]


def test_down_without_a_target_is_refused_and_reverts_nothing(empty: str) -> None:
    migrate("up")

    with pytest.raises(GatekeeperError, match="needs exactly one target"):
        migrate("down")

    assert states() == [[label, "done"] for label in LABELS]


def test_verify_demands_exactly_this_schema(empty: str) -> None:
    with pytest.raises(GatekeeperError, match="run `gatekeeper migrate up`"):
        migrate("verify")
    migrate("up")
    assert migrate("verify") == ["the schema is the one this Gatekeeper needs"]
