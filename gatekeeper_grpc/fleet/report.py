"""The link between a worker and its supervisor: a report through a pipe, and a signal when the supervisor ends."""

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass

_PR_SET_PDEATHSIG = 1
_MAX_BYTES = 4_096  # What a pipe takes at once.


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """A worker's only report: it serves, or why it cannot."""

    ops_port: int | None = None
    """The loopback port of its `/metrics`, `/health` and `/ready`; None if it does not serve."""
    error: str = ""
    """Why it does not serve."""

    def to_line(self) -> bytes:
        """Render the report as one line."""
        clipped = self.error.encode()[: _MAX_BYTES // 2].decode(errors="ignore")
        return json.dumps(asdict(self) | {"error": clipped}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "WorkerReport":
        """Parse the line that `to_line` returned."""
        return cls(**json.loads(line))


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

    def report(self, report: WorkerReport) -> None:
        """Send the report to the supervisor, and close the pipe."""
        try:
            os.write(self.report_to, report.to_line())
            os.close(self.report_to)
        except OSError:  # The supervisor has ended; SIGTERM follows.
            return

    def end_with_supervisor(self) -> None:
        """Get SIGTERM from the kernel when the supervisor ends, however it ends; exit at once if it has ended already.

        The kernel watches the supervisor's **thread** that started this process.
        """
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != self.supervisor:
            sys.exit("the supervisor is gone")
