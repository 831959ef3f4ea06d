"""A PostgreSQL on a disk of its own, which can be full: `python -m tests.faults.small_disk FOLDER` runs it.

The disk is a small tmpfs in a mount namespace that only PostgreSQL sees; its socket lies outside, for everybody.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import psycopg

from gatekeeper_grpc.embedded import EmbeddedPostgres, supervisor
from gatekeeper_grpc.embedded.disk_reserve import DiskReserve
from tests.faults.fleet import Route
from tests.support.processes import TIMEOUT_S, copied
from tests.support.servers import access_token

_SIZE = "160m"
_BALLAST_BYTES = 1 << 16
# Without root, a user namespace in which this user may mount; postgres refuses to run as root, even of a namespace.
_NAMESPACE = (
    ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-current-user", "--mount", "--keep-caps"]
)


class SmallDisk:
    """A running database on a small disk, as a fleet's database."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.dsn = self._answer()

    def fill(self) -> None:
        """Fill the disk to the last block."""
        self._tell("fill")

    def free(self) -> None:
        """Make room again."""
        self._tell("free")

    def token(self) -> str:
        """Return an access token of the prepared admin user."""
        return access_token(self.dsn, "admin")

    def route(self) -> AbstractContextManager[Route]:
        """Return the straight way."""
        return nullcontext(Route(self.dsn))

    def _tell(self, order: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self._process.stdout
        # What the supervisor logs goes to the same pipe.
        answers = (line for line in self._process.stdout if line.startswith("> "))
        return next(answers).removeprefix("> ").strip()


@contextmanager
def small_disk(prepared: Path, folder: Path) -> Iterator[SmallDisk]:
    """Run a copy of a prepared data directory on a small disk for the length of the block."""
    folder.mkdir()
    command = [*on_small_disk(folder), sys.executable, "-m", __name__, str(prepared), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield SmallDisk(process)
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait(TIMEOUT_S)


def on_small_disk(folder: Path) -> tuple[str, ...]:
    """A launcher: the program sees an empty small disk at `folder`, which nobody else sees there."""
    mount = f'mount -t tmpfs -o size={_SIZE},mode=711 small {folder} && exec "$@"'
    return *_NAMESPACE, "sh", "-c", mount, "sh"


def fill(ballast: Path) -> None:
    """Fill the disk to the last block with a file."""
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(_BALLAST_BYTES)):
            pass


def exhaust_wal(dsn: str) -> None:
    """Write to the WAL, and nowhere else, until it cannot grow."""
    with psycopg.connect(dsn, autocommit=True) as conn, suppress(psycopg.OperationalError):
        while True:
            conn.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1000000))")


def _serve(prepared: Path, folder: Path) -> None:
    # As a PostgreSQL is that somebody else runs.
    supervisor._RETRY_S = 0.1
    DiskReserve.give_up_if_full = lambda _reserve: None  # type: ignore[assignment, method-assign]
    copied(prepared, folder)
    ballast = folder / "ballast"
    with EmbeddedPostgres(folder / "data") as embedded:
        print(f"> {embedded.dsn}", flush=True)  # noqa: T201 - for the process that started this one
        for order in sys.stdin:
            if order.strip() == "fill":
                fill(ballast)
            else:
                ballast.unlink()
            print("> done", flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve(*map(Path, sys.argv[1:]))
