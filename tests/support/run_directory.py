"""Where a run of the tests keeps its files: a directory that the next run removes, however this one ends."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from gatekeeper_grpc.embedded.programs import open_directory

_PREFIX = "gk-tests-"  # Short, because the path of a Unix socket has at most 107 characters.


def make_run_directory(parent: Path) -> Path:
    """Make the directory of this run, and remove those of runs that have ended. It stays for who looks at a failure."""
    with open_directory(parent) as everybody:
        fcntl.flock(everybody, fcntl.LOCK_EX)  # Nobody takes a new directory for one that has been left.
        for run in parent.glob(f"{_PREFIX}*"):
            _remove_unless_held(run)
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        made.chmod(0o1777)  # Like its parent: postgres has an account of its own.
        hold(made)
    return made


def hold(run: Path) -> None:
    """Keep the directory of a run until this process ends; each process of the run calls this."""
    fcntl.flock(os.open(run, os.O_RDONLY), fcntl.LOCK_SH)


def _remove_unless_held(run: Path) -> None:
    if run.is_symlink() or run.stat().st_uid != os.geteuid():
        return
    with open_directory(run) as left:
        try:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(run, ignore_errors=True)
