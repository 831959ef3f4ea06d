"""The database's files: makes them on the first start, and reads the status that the running server writes."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from gatekeeper_grpc.embedded.home import Home
from gatekeeper_grpc.embedded.programs import Programs, lent_path, open_directory

DATABASE = "gatekeeper"
DB_USER = "gatekeeper"

_PROGRAM_TIMEOUT_S = 120.0
# The longest wait for the database of a killed Gatekeeper to finish its fast shutdown.
_ORPHANS_TIMEOUT_S = 20.0
_INITDB = (
    f"--username={DB_USER}",
    "--encoding=UTF8",
    "--locale=C",  # The wheel has no ICU, and C sorts the same on every machine.
    "--data-checksums",
    # The socket is the only way in, and only its directory's owner and root can reach it.
    "--auth-local=trust",
    "--auth-host=reject",
)
_PID_LINE, _STATUS_LINE = 0, 7


def ensure_cluster(home: Home, programs: Programs, settings: Mapping[str, str]) -> bool:
    """Make the cluster with its user and database if it does not exist; all of it or nothing.

    Returns:
        Whether this call made it.

    Raises:
        EmbeddedDatabaseError: A program failed, or an orphaned postgres still runs on the cluster.
    """
    with home.lock_cluster(timeout_s=_ORPHANS_TIMEOUT_S) as lock:
        if home.cluster.exists():
            return False
        _make_draft(home, programs)
        with open_directory(home.draft) as draft:
            _fill_draft(programs, settings, draft=draft, lock=lock.fileno())
        home.draft.rename(home.cluster)
        with open_directory(home.path) as parent:
            os.fsync(parent)
    return True


def ready_pid(cluster: Path) -> int | None:
    """Return the process id of the server of `cluster` from ``postmaster.pid``; None if it accepts no connections."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    is_ready = len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready"
    return int(lines[_PID_LINE]) if is_ready else None


def options(settings: Mapping[str, str]) -> list[str]:
    """Render settings as command-line options, which override the cluster's configuration files."""
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _make_draft(home: Home, programs: Programs) -> None:
    if home.draft.exists():  # An earlier first start was killed.
        shutil.rmtree(home.draft)
    home.draft.mkdir(mode=0o700)
    os.chown(home.draft, programs.account.uid, programs.account.gid)


def _fill_draft(programs: Programs, settings: Mapping[str, str], *, draft: int, lock: int) -> None:
    lend, data_dir = (draft, lock), f"--pgdata={lent_path(draft)}"
    sync = ["--no-sync"] if settings.get("fsync") == "off" else []
    programs.run("initdb", data_dir, *_INITDB, *sync, lend=lend, timeout_s=_PROGRAM_TIMEOUT_S)
    # A server for one session on its standard input; without exit_on_error it would ignore a failed statement.
    single_user = ["--single", "-D", lent_path(draft), *options({**settings, "exit_on_error": "on"}), "template1"]
    statement = f"CREATE DATABASE {DATABASE}\n"
    programs.run("postgres", *single_user, lend=lend, timeout_s=_PROGRAM_TIMEOUT_S, text=statement)
