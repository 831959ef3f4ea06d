"""Settings stand in pages as `gatekeeper config --check` accepts them."""

import os
from pathlib import Path

import pytest

from tests.support.blocks import SETTINGS, Block, all_blocks
from tests.support.processes import KEYS
from tests.support.shell import BIN, Shell
from tests.support.tls import CertificateFolder

BLOCKS = [block for block in all_blocks() if block.runner == SETTINGS and not block.not_run]


def script_of(block: Block, folder: Path) -> str:
    """The script with files that exist; its variables are exported."""
    files = CertificateFolder(folder).variables
    paths = {
        "/etc/gatekeeper/tls.crt": files["GATEKEEPER_TLS_CERT_FILE"],
        "/etc/gatekeeper/tls.key": files["GATEKEEPER_TLS_KEY_FILE"],
        "/etc/gatekeeper/clients.crt": files["GATEKEEPER_TLS_CERT_FILE"],
    }
    script = block.script
    for path, other in paths.items():
        script = script.replace(path, other)
    return f"set -a\n{script}\ngatekeeper config --check"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    variables = {**KEYS, "DATABASE_URL": "postgresql://gatekeeper@db.internal/gatekeeper"}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return Shell({"PATH": path, "HOME": str(tmp_path), **variables}, folder=tmp_path)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_settings_of_a_page_are_accepted(block: Block, shell: Shell, tmp_path: Path) -> None:
    shell.pastes(script_of(block, tmp_path))


def test_twin_a_wrong_setting_is_refused(shell: Shell) -> None:
    code, printed = shell.run("GATEKEEPER_LISTEN=0.0.0.0:500510 gatekeeper config --check")

    assert (code, "GATEKEEPER_LISTEN" in printed) == (1, True)
