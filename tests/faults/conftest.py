"""Fixtures of the fault tests: a PostgreSQL for each test, and a report that is printed at the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import postgres as databases
from tests.faults.postgres import Postgres
from tests.faults.report import Report
from tests.support.processes import copied

_REPORT = pytest.StashKey[Report]()
_REPORT_FILE = Path(__file__).parents[2] / ".faults" / "report.md"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the report, and keep it."""
    report = config.stash[_REPORT]
    if report.rows or report.twins:
        _REPORT_FILE.parent.mkdir(exist_ok=True)
        _REPORT_FILE.write_text(report.markdown() + "\n", encoding="utf-8")
        terminalreporter.section("faults")
        terminalreporter.write_line(report.markdown())


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Collects what is measured."""
    return request.config.stash[_REPORT]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a migrated database; not to be used itself."""
    return databases.prepare(tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture
def data_dir(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data directory."""
    return copied(prepared, tmp_path)


@pytest.fixture
def postgres(data_dir: Path) -> Iterator[Postgres]:
    """A durable PostgreSQL of this test's own."""
    with databases.running(data_dir) as running:
        yield running
