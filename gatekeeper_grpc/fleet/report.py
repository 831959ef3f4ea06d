"""The link between a worker and its supervisor: a report through a pipe, and a signal when the supervisor ends."""

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """A worker's only report: it serves, or why it cannot."""

    ops_port: int | None = None
    """The loopback port of its `/metrics`, `/livez` and `/readyz`; None if it does not serve."""
    error: str = ""
    """Why it does not serve."""

    def send(self, pipe: Connection) -> None:
        """Send the report to the supervisor."""
        pipe.send_bytes(json.dumps(asdict(self)).encode())

    @classmethod
    def receive(cls, pipe: Connection) -> "WorkerReport":
        """Receive the report that `send` sent.

        Raises:
            EOFError: The worker ended without a report.
        """
        return cls(**json.loads(pipe.recv_bytes()))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArgs:
    """The command-line arguments of a worker."""

    number: int
    """The worker's number, from 1."""
    report_to: int
    """The descriptor of the pipe for the report."""
    supervisor: int
    """The process id of the supervisor."""
    is_prepared: bool
    """The supervisor has prepared the database."""
    replaces: bool = False
    """Another worker serves until this one does."""

    def report(self, report: WorkerReport) -> None:
        """Send the report to the supervisor, and close the pipe."""
        # Without the supervisor the pipe is broken; SIGTERM follows.
        with suppress(OSError), Connection(self.report_to, readable=False) as pipe:
            report.send(pipe)

    def end_with_supervisor(self) -> None:
        """Get SIGTERM from the kernel when the supervisor ends, however it ends; exit at once if it has ended already.

        The kernel watches the supervisor's **thread** that started this process.
        """
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != self.supervisor:
            sys.exit("the supervisor is gone")
