"""Commands that operate a server run as they stand in their pages, on PostgreSQL and a server of their own."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatekeeper_grpc.store.migrations.runner import Migrator
from tests.support.blocks import Block, blocks_of
from tests.support.processes import KEYS, QUICK, serving
from tests.support.replication import Node, open_folder
from tests.support.shell import BIN, Shell

PASSWORD = "canary-password"


def block(page: str, heading: str) -> Block:
    """The one block of a section that is run."""
    (found,) = (block for block in blocks_of(page) if block.heading == heading and not block.not_run)
    return found


class Operator:
    """Somebody with a shell, the settings of an instance, and a PostgreSQL that has the database `gatekeeper`."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.folder = folder
        variables = {
            **QUICK,
            **KEYS,
            "GATEKEEPER_DATA_DIR": str(folder / "data"),
            "GATEKEEPER_ADMIN_PASSWORD": PASSWORD,
            "HOME": str(folder),
            "PATH": os.pathsep.join([str(BIN), str(node.bin_dir), os.environ["PATH"]]),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(node.port),
            "PGUSER": "gatekeeper",
        }
        self.shell = Shell(variables, folder=folder)
        self.shell.pastes("createdb gatekeeper")

    def script(self, block: Block, **instead: str) -> str:
        """The script of a block, with other texts in place of those that differ from site to site."""
        script = re.sub(r"@db(?:\.internal)?/", f"@{self.node.address}/", block.script)
        for text, other in instead.items():
            assert text in script
            script = script.replace(text, other)
        return script

    def migrates(self) -> None:
        """Make the schema, and let commands find it."""
        url = f"postgresql://gatekeeper@{self.node.address}/gatekeeper"
        self.shell.environment["DATABASE_URL"] = url
        Migrator(url).up()


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with open_folder() as folder:
        node = Node(folder / "node")
        node.init()
        node.start()
        yield node
        node.stop()


@pytest.fixture
def operator(node: Node, tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(node, tmp_path)
    yield operator
    operator.shell.pastes("dropdb --force gatekeeper")


def test_the_first_lines_of_the_readme_print_what_they_are_said_to(shell: Shell) -> None:
    lines = block("README.md", "The first minute").script.splitlines()

    for line in lines:
        printed = shell.pastes(line)
        assert " ".join(line.partition(" # ")[2].split()) in " ".join(printed.split())


def test_a_server_is_set_up_as_the_readme_says(operator: Operator) -> None:
    script = operator.script(block("README.md", "Running it in production"), **{"=...": f"={PASSWORD}"})

    operator.shell.serves(script)


def test_a_role_that_owns_nothing_serves_as_the_page_says(operator: Operator) -> None:
    operator.shell.pastes("createuser gatekeeper_owner")
    operator.shell.pastes("psql -c 'ALTER DATABASE gatekeeper OWNER TO gatekeeper_owner' gatekeeper")

    operator.shell.serves(operator.script(block("docs/operations/audit.md", "Serve with a role that owns nothing")))


@pytest.mark.parametrize("heading", ["Reconcile", "Ship the log"])
def test_the_audit_log_is_read_as_the_page_says(operator: Operator, heading: str) -> None:
    operator.migrates()

    operator.shell.pastes(operator.script(block("docs/operations/audit.md", heading)))


def test_the_oldest_entries_are_archived_as_the_page_says(operator: Operator, tmp_path: Path) -> None:
    operator.migrates()
    (tmp_path / "files").mkdir()

    operator.shell.pastes(
        operator.script(block("docs/operations/audit.md", "Retention"), **{"/archive": str(tmp_path / "files")})
    )


def test_secrets_come_from_files_as_the_page_says(operator: Operator, tmp_path: Path) -> None:
    operator.migrates()
    (tmp_path / "url").write_text(operator.shell.environment.pop("DATABASE_URL"))
    script = operator.script(
        block("docs/operations/secrets.md", "From a file"), **{"/run/secrets/database_url": str(tmp_path / "url")}
    )

    operator.shell.serves(script)


def test_keys_are_rotated_as_the_page_says(operator: Operator) -> None:
    operator.migrates()

    operator.shell.pastes(operator.script(block("docs/operations/secrets.md", "Rotating")))


def test_traces_are_switched_on_as_the_page_says(operator: Operator) -> None:
    operator.migrates()
    script = operator.script(block("docs/operations/traces.md", "Traces"), **{"collector:4317": "127.0.0.1:1"})

    operator.shell.serves(script)


def test_a_hung_server_is_examined_as_the_page_says(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--demo") as server:
        shell = Shell({"PATH": os.environ["PATH"], "PID": str(server.process.pid)})
        for block in blocks_of("docs/maintaining.md"):
            shell.pastes(block.script.replace("127.0.0.1:9464", f"127.0.0.1:{server.ops_port}"))

        assert server.ends_within(60) != 0
        assert "Current thread" in server.log.whole()
