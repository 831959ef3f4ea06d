"""The files of the database: makes them on the first start, and reads what the running server writes about itself."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gatekeeper_grpc.embedded.home import Home
from gatekeeper_grpc.embedded.programs import Programs, lent_path, open_directory

DATABASE = "gatekeeper"
ROLE = "gatekeeper"

_PROGRAM_TIMEOUT_S = 120.0
# The longest we wait for the database of a killed Gatekeeper to finish its fast shutdown.
_ORPHANS_TIMEOUT_S = 20.0
_INITDB = (
    f"--username={ROLE}",
    "--encoding=UTF8",
    "--locale=C",  # The wheel has no ICU; and C sorts alike on every machine.
    "--data-checksums",
    # The socket's directory is the door: only its owner and root get in. There is no other.
    "--auth-local=trust",
    "--auth-host=reject",
)
_PID_LINE, _STATUS_LINE = 0, 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What ``postmaster.pid`` says: the server's process, and whether it takes connections."""

    pid: int
    is_ready: bool


def ensure_cluster(home: Home, programs: Programs, settings: Mapping[str, str]) -> bool:
    """Make the cluster with its role and database unless it is there; all of it or nothing.

    Returns:
        Whether it was made now.

    Raises:
        EmbeddedDatabaseError: A program failed, or an orphaned postgres still runs here.
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


def server_status(cluster: Path) -> ServerStatus | None:
    """Read the state of the server of `cluster`; None while it has not written all of it, or has gone."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    if len(lines) <= _STATUS_LINE:
        return None
    return ServerStatus(pid=int(lines[_PID_LINE]), is_ready=lines[_STATUS_LINE].strip() == "ready")


def options(settings: Mapping[str, str]) -> list[str]:
    """Render settings as a command line, where they win over the cluster's configuration files."""
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _make_draft(home: Home, programs: Programs) -> None:
    if home.draft.exists():  # A first start was killed half way.
        shutil.rmtree(home.draft)
    home.draft.mkdir(mode=0o700)
    os.chown(home.draft, programs.account.uid, programs.account.gid)


def _fill_draft(programs: Programs, settings: Mapping[str, str], *, draft: int, lock: int) -> None:
    lend, data_dir = (draft, lock), f"--pgdata={lent_path(draft)}"
    sync = ["--no-sync"] if settings.get("fsync") == "off" else []
    programs.run("initdb", data_dir, *_INITDB, *sync, lend=lend, timeout_s=_PROGRAM_TIMEOUT_S)
    # A server for one session on its standard input; without exit_on_error it would shrug a failure off.
    single_user = ["--single", "-D", lent_path(draft), *options({**settings, "exit_on_error": "on"}), "template1"]
    statement = f"CREATE DATABASE {DATABASE}\n"
    programs.run("postgres", *single_user, lend=lend, timeout_s=_PROGRAM_TIMEOUT_S, text=statement)
