"""The place of one embedded database below the data directory, and who is alive in it.

Two locks keep the peace. `supervisor.lock` is ours alone: one Gatekeeper per data directory. `postgres.lock` is held by
the database's processes themselves, down to the last backend: whoever gets it knows that none of them lives.
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
        """Holds everything below; mode 0700, which seals the account that runs postgres into `cluster`."""
        return self.data_dir / "postgres"

    @property
    def cluster(self) -> Path:
        """PostgreSQL's own data directory."""
        return self.path / "cluster"

    @property
    def draft(self) -> Path:
        """A cluster in the making; becomes `cluster` once it is complete."""
        return self.path / "cluster.new"

    @property
    def log(self) -> Path:
        """What postgres says, since the last start of Gatekeeper."""
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
        """Make the directories where missing, closed to everybody else."""
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
            EmbeddedDatabaseError: Another one runs.
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
        """Take the lock that proves that no process of the database lives, after waiting for the last to go.

        Returns:
            The file to lend to the next process of the database.

        Raises:
            EmbeddedDatabaseError: Some still live after `timeout_s`.
        """
        try:
            return acquire_lock(self.postgres_lock, timeout_s=timeout_s)
        except TimeoutError:
            raise EmbeddedDatabaseError(
                f"an orphaned postgres still runs on {self.cluster} (processes: {self.postgres_pids() or 'unknown'}): "
                "send SIGINT to the first of them, then start again"
            ) from None

    def postgres_pids(self) -> list[int]:
        """List the postgres processes at work in the cluster, as far as this user may see them; the oldest is first."""
        try:
            cluster = self.cluster.stat()
        except FileNotFoundError:
            return []
        return sorted(int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _works_in(entry, cluster))


def _works_in(process: Path, directory: os.stat_result) -> bool:
    # By name too: an operator's shell may stand in there as well.
    try:
        named = (process / "comm").read_text().strip() in _NAMES
        return named and os.path.samestat((process / "cwd").stat(), directory)
    except OSError:  # It ended meanwhile, or belongs to somebody else.
        return False
