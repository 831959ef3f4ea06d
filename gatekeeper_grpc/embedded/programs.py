"""Runs PostgreSQL's programs: as their account, with one log, on inherited directories; they end with this process.

A program gets a descriptor instead of a path, and opens ``/proc/self/fd/N``. So the data directory may lie below
parents that the account cannot enter, such as root's home, and no mode has to change. It also confines the account: it
cannot pass through ``..`` to a parent of mode 0700.
"""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gatekeeper_grpc.embedded.account import Account
from gatekeeper_grpc.embedded.errors import EmbeddedDatabaseError

_STUB = Path(__file__).with_name("exec_stub.py")
_TAIL_LINES = 15
# A child's environment has nothing else of this process, above all no keys and passwords.
_INHERITED = ("PATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """PostgreSQL's programs in `bin_dir`, run as `account`; what they print is appended to `log`."""

    bin_dir: Path
    account: Account
    log: Path

    def launch(
        self, program: str, *arguments: str, lend: tuple[int, ...], stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own.

        It gets SIGINT when the **thread** that called this ends: call it from a thread that lives as long as the child.

        Args:
            program: Its name in `bin_dir`.
            arguments: Its command line.
            lend: Descriptors that it inherits.
            stdin: As for `subprocess.Popen`.
        """
        stub = [sys.executable, "-I", "-S", str(_STUB)]
        identity = [str(os.getpid()), str(self.account.uid), str(self.account.gid)]
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own programs and arguments
                [*stub, *identity, str(self.bin_dir / program), *arguments],
                stdin=stdin,
                stdout=log,
                stderr=log,
                pass_fds=lend,
                cwd="/",  # PostgreSQL 15 returns to its first directory, which its account must be able to enter.
                env={"LC_ALL": "C"} | {name: os.environ[name] for name in _INHERITED if name in os.environ},
                start_new_session=True,  # Ctrl-C in the terminal is for this process.
            )

    def run(self, program: str, *arguments: str, lend: tuple[int, ...], timeout_s: float, text: str = "") -> None:
        """Run a program to its end with `text` as its input.

        Raises:
            EmbeddedDatabaseError: It failed or took longer than `timeout_s`; the message has the end of its log.
        """
        with self.launch(program, *arguments, lend=lend, stdin=subprocess.PIPE) as process:
            try:
                process.communicate(text.encode(), timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise self.failure(f"{program} took longer than {timeout_s:g} s") from None
        if process.returncode != 0:
            raise self.failure(f"{program} failed with exit code {process.returncode}")

    def failure(self, what: str) -> EmbeddedDatabaseError:
        """Build the error for a program that failed, with the last lines of the log."""
        with self.log.open(errors="replace") as log:
            tail = "".join(f"  {line}" for line in deque(log, maxlen=_TAIL_LINES))
        return EmbeddedDatabaseError(f"{what} (programs in {self.bin_dir}); the end of {self.log}:\n{tail}")


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """Open a directory for a program to inherit, for the length of the block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def lent_path(descriptor: int) -> str:
    """Return the path under which a program sees a directory that it inherits."""
    return f"/proc/self/fd/{descriptor}"
