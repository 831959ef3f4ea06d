"""Room on the disk that is kept for the embedded database, so that it can start although the disk is full.

PostgreSQL ends when its WAL cannot grow, and cannot start again then: the start needs WAL as well. With the room of the
reserve it starts, and serves reads. Writes have to wait until the disk has room again, because they would use it up.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import structlog

WAL_SEGMENT_BYTES = 16 << 20
RESERVED_BYTES = 2 * WAL_SEGMENT_BYTES
"""A segment for the checkpoint that a start makes, and one that PostgreSQL prepares ahead."""
# What st_blocks counts, whatever the blocks of the file system are (stat(2)).
_BLOCK_BYTES = 512

_log = structlog.get_logger()


class DiskReserve:
    """The reserve of a database. Any process and thread may use it.

    Args:
        home: The directory of the database's files, on the disk in question.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        # An empty file: given up. None: never taken, because the disk had no room for it.
        self._file = home / "reserve"

    def take(self) -> bool:
        """Take the room, if the disk has it and a segment more; return whether it is taken."""
        if self._size() == RESERVED_BYTES and not self._is_sparse():
            return True
        if self._free() < RESERVED_BYTES + WAL_SEGMENT_BYTES:
            return False
        with suppress(OSError), self._file.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)
            return True
        self.give_up()
        return False

    def give_up(self) -> None:
        """Give the room to the database, if there is any."""
        if self._size():
            os.truncate(self._file, 0)
            _log.warning("disk_reserve_given_up", file=str(self._file), bytes=RESERVED_BYTES)

    def give_up_if_full(self) -> None:
        """Give the room to the database if its WAL could not grow without it."""
        if self._free() < WAL_SEGMENT_BYTES:
            self.give_up()

    def is_disk_full(self) -> bool:
        """Return whether the database's WAL could not grow, or could only with the reserve."""
        return (self._size() == 0 and not self.take()) or self._free() < WAL_SEGMENT_BYTES

    def _size(self) -> int | None:
        try:
            return self._file.stat().st_size
        except FileNotFoundError:
            return None

    def _is_sparse(self) -> bool:
        """Return whether the file takes no room, as the copy of a backup may."""
        return self._file.stat().st_blocks * _BLOCK_BYTES < RESERVED_BYTES

    def _free(self) -> int:
        return shutil.disk_usage(self._home).free
