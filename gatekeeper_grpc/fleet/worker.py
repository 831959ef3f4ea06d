"""One worker process as the supervisor sees it: start, report, end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe

from gatekeeper_grpc.config import handover
from gatekeeper_grpc.config.secret_file import SUFFIX
from gatekeeper_grpc.fleet.probe import Probe
from gatekeeper_grpc.fleet.report import WorkerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to start a worker."""

    arguments: Sequence[str]
    """Its command line, without number and pipe."""
    environment: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    """Variables that are handed over, see `handover`."""

    @classmethod
    def like_ours(cls, *, is_prepared: bool, **settings: str) -> "Command":
        """Start workers as this process was started, with these variables in addition."""
        program = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
        prepared = ["--prepared"] if is_prepared else []
        inherited = {name: value for name, value in os.environ.items() if name.removesuffix(SUFFIX) not in settings}
        environment, secrets = handover.split({**inherited, **settings})
        arguments = [sys.executable, *program, "worker", *prepared]
        return cls(arguments=arguments, environment=environment, secrets=secrets)


class Worker:
    """A worker process, started by the constructor. It gets SIGTERM when the thread that made it ends.

    Args:
        number: From 1.
        command: How to start it.
        replaces: Whether another worker serves until this one does.
    """

    def __init__(self, number: int, command: Command, *, replaces: bool = False) -> None:
        self.number = number
        self.report: WorkerReport | None = None
        self.probe: Probe | None = None
        self._started_s = time.monotonic()
        self._pipe, theirs = Pipe(duplex=False)
        with theirs, os.fdopen(handover.give(command.secrets)) as secrets:
            arguments = ["--number", str(number), "--report-to", str(theirs.fileno()), "--supervisor", str(os.getpid())]
            arguments += ["--replaces"] if replaces else []
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [*command.arguments, *arguments],
                env=command.environment,
                stdin=secrets,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor.
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return its exit code in the terms of `subprocess`; None while it runs."""
        return self._process.poll()

    @property
    def serves(self) -> bool:
        """Whether it has reported that it serves."""
        return self.report is not None and self.report.ops_port is not None

    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started_s

    def read_report(self) -> WorkerReport | None:
        """Return its report if it has just arrived, and start to probe the worker; otherwise None."""
        if self.report is not None or not self._pipe.poll():
            return None
        with suppress(EOFError, OSError):  # It ended without a report, or while it sent one.
            self.report = WorkerReport.receive(self._pipe)
        if self.report is not None and self.report.ops_port is not None:
            self.probe = Probe(self.number, self.pid, self.report.ops_port)
            self.probe.start()
        return self.report

    def terminate(self) -> None:
        """Let it drain, and end."""
        self._process.send_signal(signal.SIGTERM)

    def leave(self) -> None:
        """Let it end without an announcement, because its replacement serves."""
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    def close(self) -> None:
        """Release its pipe, and stop its probe."""
        self._pipe.close()
        if self.probe:
            self.probe.stop()
