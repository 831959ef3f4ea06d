"""A PostgreSQL as a distribution ships it: Debian's 15, or the programs in GATEKEEPER_TEST_PG_BIN."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.replication import Node

# Read before a fixture of all tests removes the variables of the developer.
PROGRAMS = Path(os.environ.get("GATEKEEPER_TEST_PG_BIN") or "/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """The server. Everybody may connect as superuser; a role that has a password needs it, at its database."""
    if not (PROGRAMS / "postgres").exists():
        pytest.fail(
            f"these tests need a server that is not the bundled one, and {PROGRAMS} has none:"
            " apt-get install postgresql-15, or set GATEKEEPER_TEST_PG_BIN to the directory of its programs"
        )
    with tempfile.TemporaryDirectory(prefix="gatekeeper-test-") as folder:
        Path(folder).chmod(0o711)
        node = Node(Path(folder) / "node", programs=PROGRAMS)
        node.init()
        _require_passwords(node)
        node.start()
        node.run("CREATE ROLE with_password")
        try:
            yield node
        finally:
            node.stop()


def _require_passwords(node: Node) -> None:
    file = node.data_dir / "pg_hba.conf"
    file.write_text(f"host all +with_password 127.0.0.1/32 scram-sha-256\n{file.read_text()}")
