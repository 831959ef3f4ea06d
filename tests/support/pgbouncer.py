"""A real PgBouncer in front of a PostgreSQL: Debian's package, installed or unpacked by `make test-databases`."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg

from gatekeeper_grpc.embedded.account import account_for
from tests.support.ports import free_port
from tests.support.processes import under
from tests.support.replication import Node
from tests.support.servers import scratch
from tests.support.waiting import eventually

_UNPACKED = Path(sys.prefix) / "debian" / "pgbouncer"
_CONFIG = """
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
ignore_startup_parameters = {ignored}
[databases]
* = host=127.0.0.1 port={server_port} user=gatekeeper
"""
IGNORED = "options,extra_float_digits"


@contextmanager
def pgbouncer(node: Node, mode: str, *, ignored: str = IGNORED) -> Iterator[int]:
    """Run a PgBouncer in front of a server for the length of a block; yield its port."""
    program, environment = _program()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder, account = Path(name), account_for(node.data_dir)
        folder.chmod(0o755)
        config = folder / "pgbouncer.ini"
        config.write_text(_CONFIG.format(server_port=node.port, port=port, mode=mode, ignored=ignored))
        with (folder / "log").open("wb") as log:
            command = [*under(account), str(program), str(config)]
            process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=log)
        try:
            assert eventually(lambda: _answers(port)), (folder / "log").read_text()
            yield port
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        psycopg.connect(f"postgresql://gatekeeper@127.0.0.1:{port}/postgres").close()
    except psycopg.OperationalError:
        return False
    return True


@cache
def _program() -> tuple[Path, Mapping[str, str]]:
    """Return the program and what it needs in its environment."""
    installed = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if installed:
        return Path(installed), {}
    libraries = next(_UNPACKED.glob("usr/lib/*/libcares.so.2"), None)
    assert libraries is not None, "PgBouncer is not here: run these tests by `make test-databases`, which unpacks it"
    # Here, for the account that PostgreSQL runs as: it may not reach the checkout.
    folder = scratch() / "pgbouncer"
    shutil.copytree(_UNPACKED, folder)
    scratch().chmod(0o755)
    return folder / "usr" / "sbin" / "pgbouncer", {
        "LD_LIBRARY_PATH": str(folder / libraries.parent.relative_to(_UNPACKED))
    }
