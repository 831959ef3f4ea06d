"""A start says so if each instance has an erasure ledger for itself."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.lifecycle.prepare_database import prepare_database
from tests.support.servers import KEYS, settings_for_tests

pytestmark = pytest.mark.promise("D9")


def warnings(dsn: str, **settings: object) -> list[tuple[str, str]]:
    """The paths in the warnings of a start, each with what to do."""
    loaded = settings_for_tests(admin_password="a-long-enough-one", **settings)  # pragma: allowlist secret
    with capture_logs() as logs:
        prepare_database(loaded, dsn, KEYS, demo=False)
    return [(log["path"], log["remedy"]) for log in logs if log["event"] == "erasure_ledger_not_shared"]


def test_a_ledger_in_the_data_folder_of_an_instance_is_warned_of(dsn: str, tmp_path: Path) -> None:
    ((path, remedy),) = warnings(dsn, database_url=dsn, data_dir=tmp_path)

    assert Path(path).parent == tmp_path
    assert "set GATEKEEPER_ERASURE_LEDGER to a file that all instances share" in remedy


def test_a_ledger_elsewhere_is_not(dsn: str, tmp_path: Path) -> None:
    assert warnings(dsn, database_url=dsn, data_dir=tmp_path / "own", erasure_ledger=tmp_path / "shared") == []


def test_that_of_an_embedded_database_is_not(dsn: str, tmp_path: Path) -> None:
    """It is one instance alone."""
    assert warnings(dsn, data_dir=tmp_path) == []
