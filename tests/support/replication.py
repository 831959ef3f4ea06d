"""Real PostgreSQL servers on loopback that a test may kill, hang and promote: one alone, or a primary and its standby.

Every failure of a replicated database can be had: `Pair.fail_over` after `Node.kill`, a standby that lags
(`paused_replay`) or is cut off (`cut_off`, so that a promotion loses commits), a server that hangs (`Node.hanging`).
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import LiteralString

import psycopg

from gatekeeper_grpc.embedded.account import account_for
from gatekeeper_grpc.embedded.binaries import find_bin_dir, runnable_bin_dir
from gatekeeper_grpc.embedded.programs import Programs
from gatekeeper_grpc.store.migrations.runner import Migrator
from tests.support.ports import free_port
from tests.support.processes import hanging
from tests.support.waiting import eventually

ROLE = "gatekeeper"
_TIMEOUT_S = 60.0
_SETTINGS: Mapping[str, str] = {
    # The processes are killed, never the machine: what they have written, the kernel keeps.
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": "100",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # A standby that lost its primary looks for it again at once.
    "wal_retrieve_retry_interval": "100ms",
    # A commit that waits for a standby in vain would otherwise hold up a fast shutdown.
    "wal_sender_timeout": "10s",
    "log_min_messages": "log",
}


class Node:
    """One PostgreSQL server, with its data in a folder of its own, on a port that it keeps through restarts."""

    def __init__(
        self, folder: Path, *, settings: Mapping[str, str] | None = None, programs: Path | None = None
    ) -> None:
        self.port = free_port()
        self.data_dir = folder / "data"
        self._settings = {**_SETTINGS, **(settings or {}), "port": str(self.port)}
        account = account_for(self.data_dir)
        folder.mkdir(parents=True)
        os.chown(folder, account.uid, account.gid)
        self.bin_dir = runnable_bin_dir(programs or find_bin_dir(), account)
        self._programs = Programs(bin_dir=self.bin_dir, account=account, log=folder / "postgres.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def dsn(self) -> str:
        """The DSN of the database `postgres` on this server, and on no other."""
        return dsn_of(self)

    def init(self) -> None:
        """Make an empty cluster."""
        options = (f"--username={ROLE}", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        self._programs.run("initdb", "-D", str(self.data_dir), *options, lend=(), timeout_s=_TIMEOUT_S)

    def copy(self, primary: "Node") -> None:
        """Make a cluster that follows another one; what was here before is gone."""
        shutil.rmtree(self.data_dir, ignore_errors=True)
        source = f"host=127.0.0.1 port={primary.port} user={ROLE} application_name=standby connect_timeout=2"
        options = ("--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync")
        arguments = ("-D", str(self.data_dir), "-d", source, *options)
        self._programs.run("pg_basebackup", *arguments, lend=(), timeout_s=_TIMEOUT_S)

    def start(self) -> None:
        """Start the server, and return when it takes connections."""
        settings = [argument for name, value in self._settings.items() for argument in ("-c", f"{name}={value}")]
        self._process = self._programs.launch("postgres", "-D", str(self.data_dir), *settings, lend=())
        if not eventually(self.answers, timeout_s=_TIMEOUT_S):
            raise self._programs.failure("postgres does not take connections")

    def stop(self) -> None:
        """End the server with a fast shutdown; does nothing when it is not running."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End all processes of the server without any notice, as if its machine had lost power."""
        if self._process is None:
            return
        pids = self.pids()  # The first is the postmaster, which would start others in place of those that end.
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(_TIMEOUT_S)
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Stop all processes of the server for the length of a block: connections stay open, nothing is answered."""
        with hanging(self.pids):
            yield

    def pids(self) -> list[int]:
        """The server's processes, the postmaster first."""
        if self._process is None:
            return []
        return [self._process.pid, *_children(self._process.pid)]

    def answers(self) -> bool:
        """Whether the server takes connections."""
        try:
            self.run("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def run(self, statement: LiteralString) -> list[tuple[object, ...]]:
        """Run a statement as superuser, and return the rows, if it has any."""
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=2) as conn:
            cursor = conn.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def promote(self) -> None:
        """Make the primary of a standby, once it has replayed what it has received."""
        assert self.run("SELECT pg_promote(true, 30)") == [(True,)]

    @contextmanager
    def paused_replay(self) -> Iterator[None]:
        """Let a standby receive, and show nothing new, for the length of a block."""
        self.run("SELECT pg_wal_replay_pause()")
        assert eventually(lambda: self.run("SELECT pg_get_wal_replay_pause_state()") == [("paused",)])
        try:
            yield
        finally:
            if self.run("SELECT pg_is_in_recovery()") == [(True,)]:
                self.run("SELECT pg_wal_replay_resume()")

    def cut_off(self) -> None:
        """Let a standby receive nothing more: promoted, it lacks what its primary commits from now on."""
        self.run("ALTER SYSTEM SET primary_conninfo = ''")
        self.run("SELECT pg_reload_conf()")
        assert eventually(lambda: self.run("SELECT count(*) FROM pg_stat_wal_receiver") == [(0,)])

    def position(self) -> int:
        """How far this node is in the log of changes: what it wrote, or what it has replayed."""
        ((position,),) = self.run(
            "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END"
            " - '0/0')::bigint"
        )
        assert isinstance(position, int)
        return position


class Pair:
    """A primary and its standby; after `fail_over` they have changed places.

    Args:
        folder: Belongs to nobody else; the account that runs postgres must be able to enter it.
        synchronous: Whether a commit is acknowledged only when the standby has it as well.
    """

    def __init__(self, folder: Path, *, synchronous: bool = False) -> None:
        settings = {"synchronous_standby_names": "*"} if synchronous else {}
        self.primary = Node(folder / "one", settings=settings)
        # It may be promoted, and has no standby then that a commit could wait for.
        self.standby = Node(folder / "two")
        self._nodes = (self.primary, self.standby)

    @property
    def dsn(self) -> str:
        """The DSN that names both nodes, in an order that no failure changes."""
        return dsn_of(*self._nodes)

    def start(self) -> None:
        """Make and start both, with the schema of Gatekeeper on them."""
        self.primary.init()
        self.primary.start()
        self.standby.copy(self.primary)
        self.standby.start()
        Migrator(self.primary.dsn).up()
        self.catch_up()

    def stop(self) -> None:
        """End both."""
        for node in self._nodes:
            node.stop()

    def catch_up(self) -> None:
        """Wait until the standby shows all that the primary has committed by now."""
        position = self.primary.position()
        assert eventually(lambda: self.standby.position() >= position)

    def fail_over(self) -> float:
        """Promote the standby; return the monotonic time at which it took writes. Kill or hang the primary before."""
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        return time.monotonic()

    def rejoin(self) -> None:
        """Let the old primary, dead or alive, come back as a copy of the new one that follows it."""
        self.standby.kill()
        self.standby.copy(self.primary)
        self.standby.start()


@contextmanager
def running_node(*, settings: Mapping[str, str] | None = None) -> Iterator[Node]:
    """Run one server with the schema of Gatekeeper, for the length of a block."""
    with open_folder() as folder:
        node = Node(folder / "one", settings=settings)
        try:
            node.init()
            node.start()
            Migrator(node.dsn).up()
            yield node
        finally:
            node.stop()


@contextmanager
def running_pair(*, synchronous: bool = False) -> Iterator[Pair]:
    """Run a primary and its standby, for the length of a block."""
    with open_folder() as folder:
        pair = Pair(folder, synchronous=synchronous)
        try:
            pair.start()
            yield pair
        finally:
            pair.stop()


def dsn_of(*nodes: Node) -> str:
    """The DSN that names these nodes, in this order."""
    return f"postgresql://{ROLE}@{','.join(node.address for node in nodes)}/postgres"


@contextmanager
def open_folder() -> Iterator[Path]:
    """A new folder that the account that runs postgres can pass through."""
    with tempfile.TemporaryDirectory(prefix="gatekeeper-nodes-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
