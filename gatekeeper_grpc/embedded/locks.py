"""File locks that the kernel releases when their holders end, however they end.

An flock belongs to the open file, not to a process: a child that inherits the descriptor also holds the lock. The lock
is free when the last holder has ended.
"""

import fcntl
import os
import time
from io import FileIO
from pathlib import Path

_POLL_S = 0.01


def acquire_lock(path: Path, *, timeout_s: float = 0.0) -> FileIO:
    """Take the exclusive lock on `path`, a file made on first use.

    Returns:
        The locked file. Closing it releases the lock, unless a child has inherited the descriptor.

    Raises:
        TimeoutError: Another process still holds the lock after `timeout_s`.
    """
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
    deadline = time.monotonic() + timeout_s
    while not _try_lock(file, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            file.close()
            raise TimeoutError
        time.sleep(_POLL_S)
    return file


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock on `path`; a missing file is not locked."""
    try:
        file = FileIO(path)
    except FileNotFoundError:
        return False
    with file:
        return not _try_lock(file, fcntl.LOCK_SH)


def _try_lock(file: FileIO, operation: int) -> bool:
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
