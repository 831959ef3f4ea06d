"""One PostgreSQL server process: starts it, waits until it accepts connections, and ends it."""

import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from gatekeeper_grpc.embedded.cluster import options, ready_pid
from gatekeeper_grpc.embedded.errors import EmbeddedDatabaseError
from gatekeeper_grpc.embedded.home import Home
from gatekeeper_grpc.embedded.programs import Programs, lent_path, open_directory
from gatekeeper_grpc.embedded.sockets import PORT

_READY_TIMEOUT_S = 60.0  # Crash recovery included.
_READY_POLL_S = 0.005
# Backends end soon after their postmaster.
_LAST_BACKEND_TIMEOUT_S = 20.0
# Fast shutdown, immediate shutdown (the next start recovers and loses nothing), kill.
_SHUTDOWN = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 6.0), (signal.SIGKILL, 5.0))

_log = structlog.get_logger()


@dataclass(kw_only=True)
class Postmaster:
    """The server of one home. One thread starts it and waits for it; the server ends with that thread."""

    home: Home
    programs: Programs
    socket_dir: Path
    settings: Mapping[str, str]
    stopping: threading.Event
    """Set before `shut_down` is called from another thread: then `start` fails."""
    process: subprocess.Popen[bytes] | None = None
    """The server started last."""

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server and return when it accepts connections; also after it died.

        Raises:
            EmbeddedDatabaseError: It was not ready within a minute, it ended, or other processes use its files.
        """
        with self.home.lock_cluster(timeout_s=_LAST_BACKEND_TIMEOUT_S) as lock:
            self._discard_leftovers()
            self.process = process = self._launch(lock.fileno())
        try:
            self._wait_until_ready(process)
        except BaseException:
            self.stop()
            raise
        return process

    def shut_down(self) -> None:
        """End the server with a fast shutdown, by force if that takes too long; any thread may call this."""
        process = self.process
        for number, timeout_s in _SHUTDOWN:
            if process is None or process.poll() is not None:
                return
            process.send_signal(number)
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                _log.warning(
                    "embedded_postgres_ignores_signal", signal=number.name, waited_s=timeout_s, pid=process.pid
                )

    def stop(self) -> None:
        """Shut the server down, and wait for its last process.

        Raises:
            EmbeddedDatabaseError: A process of the server still lives.
        """
        self.shut_down()
        self.home.lock_cluster(timeout_s=_LAST_BACKEND_TIMEOUT_S).close()

    def _discard_leftovers(self) -> None:
        """Remove a killed server's files: another process may have its process id now, and postgres would not start."""
        # The lock covers servers that Gatekeeper started. One that was started by hand does not hold it.
        if pids := self.home.postgres_pids():
            raise EmbeddedDatabaseError(
                f"a postgres that Gatekeeper did not start runs on {self.home.cluster} (processes: {pids}): stop it"
            )
        (self.home.cluster / "postmaster.pid").unlink(missing_ok=True)
        for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
            (self.socket_dir / name).unlink(missing_ok=True)

    def _launch(self, lock: int) -> subprocess.Popen[bytes]:
        with ExitStack() as stack:
            cluster, sockets = (stack.enter_context(open_directory(p)) for p in (self.home.cluster, self.socket_dir))
            settings = {**self.settings, "unix_socket_directories": lent_path(sockets), "port": str(PORT)}
            arguments = ["-D", lent_path(cluster), *options(settings)]
            return self.programs.launch("postgres", *arguments, lend=(lock, cluster, sockets))

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while ready_pid(self.home.cluster) != process.pid:
            if process.poll() is not None:
                raise self.programs.failure(f"postgres ended at once with exit code {process.returncode}")
            if time.monotonic() > deadline:
                raise self.programs.failure(f"postgres was not ready within {_READY_TIMEOUT_S:g} s")
            if self.stopping.wait(_READY_POLL_S):
                raise EmbeddedDatabaseError("stopped before postgres was ready")
