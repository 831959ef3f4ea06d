"""What pages assume: a server with the demo flag, and an admin user who has logged in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Gatekeeper, serving
from tests.support.shell import BIN, Shell


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gatekeeper]:
    """A server such as `make run` starts."""
    with serving(tmp_path_factory.mktemp("server") / ".gatekeeper", "--demo") as started:
        yield started


@pytest.fixture
def shell(server: Gatekeeper, tmp_path: Path) -> Shell:
    """A shell in a folder that is like a checkout after `make run`."""
    (tmp_path / ".gatekeeper").symlink_to(server.data_dir)
    (tmp_path / ".venv").symlink_to(BIN.parent)
    variables = {
        "GATEKEEPER_SERVER": f"127.0.0.1:{server.port}",
        "HOME": str(tmp_path),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PID": str(server.process.pid),
    }
    return Shell(variables, folder=tmp_path)


@pytest.fixture
def admin_shell(shell: Shell) -> Shell:
    """The same, after a login as admin."""
    shell.pastes("gatekeeper login --password-stdin < .gatekeeper/admin_password")
    return shell
