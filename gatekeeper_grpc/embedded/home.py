"""The files of one embedded database below the data directory, and the locks on them.

`supervisor.lock` belongs to one Gatekeeper: a data directory has at most one. `postgres.lock` is held by every process
of the database, down to the last backend: a process that acquires it knows that no database process lives.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from gatekeeper_grpc.embedded.errors import EmbeddedDatabaseError
from gatekeeper_grpc.embedded.locks import acquire_lock

# What the kernel calls the server's processes; Debian's link to it has the older name.
_NAMES = frozenset({"postgres", "postmaster"})


@dataclass(frozen=True, slots=True)
class Home:
    """The files of the embedded database of `data_dir`, an absolute path."""

    data_dir: Path

    @property
    def path(self) -> Path:
        """Directory of all files below; mode 0700, which confines the account that runs postgres to `cluster`."""
        return self.data_dir / "postgres"

    @property
    def cluster(self) -> Path:
        """PostgreSQL's own data directory."""
        return self.path / "cluster"

    @property
    def draft(self) -> Path:
        """An incomplete cluster; renamed to `cluster` when it is complete."""
        return self.path / "cluster.new"

    @property
    def log(self) -> Path:
        """Output of postgres since the last start of Gatekeeper."""
        return self.path / "postgres.log"

    @property
    def socket_link(self) -> Path:
        """Symbolic link to the directory of the running database's socket."""
        return self.path / "socket"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the Gatekeeper that owns this home; contains its process id."""
        return self.path / "supervisor.lock"

    @property
    def postgres_lock(self) -> Path:
        """Held by every process of the running database."""
        return self.path / "postgres.lock"

    def create(self) -> None:
        """Make missing directories, closed to other users."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        if self.path.stat().st_uid == os.geteuid():
            self.path.chmod(0o700)

    def start_log(self) -> None:
        """Begin a new log and keep the previous one as ``postgres.log.1``."""
        with suppress(FileNotFoundError):
            self.log.rename(self.log.with_name("postgres.log.1"))
        os.close(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    def claim(self) -> FileIO:
        """Become the only Gatekeeper of this home, until the returned file is closed.

        Raises:
            EmbeddedDatabaseError: Another Gatekeeper uses this home.
        """
        try:
            lock = acquire_lock(self.supervisor_lock)
        except TimeoutError:
            raise EmbeddedDatabaseError(
                f"the embedded database of {self.data_dir} is in use by process {self.supervisor_lock.read_text()}: "
                "to join it, set DATABASE_URL to what `gatekeeper db-url` prints; else choose another data directory"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        return lock

    def lock_cluster(self, *, timeout_s: float) -> FileIO:
        """Wait until the last process of the database has ended, and take the lock that proves it.

        Returns:
            The locked file, for the next process of the database to inherit.

        Raises:
            EmbeddedDatabaseError: A process still lives after `timeout_s`.
        """
        try:
            return acquire_lock(self.postgres_lock, timeout_s=timeout_s)
        except TimeoutError:
            raise EmbeddedDatabaseError(
                f"an orphaned postgres still runs on {self.cluster} (processes: {self.postgres_pids() or 'unknown'}): "
                "send SIGINT to the first of them, then start again"
            ) from None

    def postgres_pids(self) -> list[int]:
        """List the cluster's postgres processes that this user can see, the oldest first."""
        try:
            cluster = self.cluster.stat()
        except FileNotFoundError:
            return []
        return sorted(int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _works_in(entry, cluster))


def _works_in(process: Path, directory: os.stat_result) -> bool:
    # By name too: an operator's shell may have the same working directory.
    try:
        named = (process / "comm").read_text().strip() in _NAMES
        return named and os.path.samestat((process / "cwd").stat(), directory)
    except OSError:  # The process has ended, or belongs to another user.
        return False
