"""What a worker and its supervisor have between them: one line through a pipe, and a death that both notice."""

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass

_PR_SET_PDEATHSIG = 1
_MAX_BYTES = 4_096  # What a pipe takes at once.


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a worker says once: that it serves, or why it cannot."""

    ops_port: int | None = None
    """Where its own `/metrics`, `/health` and `/ready` are, on loopback; None: it does not serve."""
    error: str = ""
    """Why it does not."""

    def to_line(self) -> bytes:
        """Write it as one line."""
        clipped = self.error.encode()[: _MAX_BYTES // 2].decode(errors="ignore")
        return json.dumps(asdict(self) | {"error": clipped}).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Report":
        """Read it."""
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArgs:
    """What a worker is told of its place, on its command line."""

    number: int
    """Which worker it is, from 1."""
    report_to: int
    """The pipe's descriptor."""
    supervisor: int
    """The process id of the supervisor."""
    is_prepared: bool
    """The supervisor has prepared the database."""

    def report(self, report: Report) -> None:
        """Say it to the supervisor; the pipe is closed then."""
        try:
            os.write(self.report_to, report.to_line())
            os.close(self.report_to)
        except OSError:  # The supervisor has gone; SIGTERM is on its way.
            return

    def end_with_supervisor(self) -> None:
        """Have the kernel send us SIGTERM when the supervisor ends, whatever way; leave at once if it has already.

        The kernel watches the supervisor's **thread** that started us.
        """
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != self.supervisor:
            sys.exit("the supervisor is gone")
