"""Terminals of 80 columns and 24 rows, on which programs run as before a person."""

import codecs
import fcntl
import io
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import START_TIMEOUT_S, stop
from tests.support.waiting import eventually

COLUMNS, ROWS = 80, 24


@dataclass(slots=True)
class Terminal:
    """What a program has written to its terminal, and what is typed there."""

    master: int
    process: subprocess.Popen[str]
    text: str = ""
    _reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        decode = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True).decode
        with suppress(OSError):  # EIO: it is closed.
            while content := os.read(self.master, 1 << 16):
                self.text += decode(content)

    def type(self, line: str) -> None:
        os.write(self.master, f"{line}\n".encode())

    def shows(self, text: str) -> bool:
        """Whether a text is shown; waits for it."""
        return eventually(lambda: text in self.text or self.process.poll() is not None) and text in self.text

    def whole(self) -> str:
        """All that the program has written, once it has ended."""
        self.process.wait(START_TIMEOUT_S)
        self._reader.join(START_TIMEOUT_S)
        return self.text


@contextmanager
def on_terminal(
    command: Sequence[str | Path], *, environment: Mapping[str, str], folder: Path | str
) -> Iterator[Terminal]:
    """Run a program on a terminal of its own, for the length of the block at most."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        cwd=folder,
        text=True,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        stop(process)
        os.close(master)


def rows(lines: Sequence[str]) -> int:
    """How many rows of a terminal the lines take."""
    return sum(max(1, -(-len(line) // COLUMNS)) for line in lines)
