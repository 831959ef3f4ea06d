"""One PostgreSQL server process: starts it, waits until it accepts connections, and ends it."""

import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import structlog

from gatekeeper_grpc.embedded.cluster import options, server_status
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


class Postmaster:
    """The server of one home, for one thread: the child ends with the thread that calls `start`."""

    def __init__(
        self,
        *,
        home: Home,
        programs: Programs,
        socket_dir: Path,
        settings: Mapping[str, str],
        stopping: threading.Event,
    ) -> None:
        self._home = home
        self._programs = programs
        self._socket_dir = socket_dir
        self._settings = settings
        self._stopping = stopping
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0

    @property
    def pid(self) -> int | None:
        """Process id of the server started last."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """Exit code of the server started last, in the terms of `subprocess`; None while it runs."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start the server and return when it accepts connections; also after it died.

        Raises:
            EmbeddedDatabaseError: It was not ready within a minute, it ended, or other processes use its files.
        """
        with self._home.lock_cluster(timeout_s=_LAST_BACKEND_TIMEOUT_S) as lock:
            self._discard_leftovers()
            self._launch(lock.fileno())
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server with a fast shutdown, by force if that takes too long, and wait for its last process.

        Raises:
            EmbeddedDatabaseError: A process of the server still lives.
        """
        if self._process is None:
            return
        for number, timeout_s in _SHUTDOWN:
            if self._process.poll() is not None:
                break
            self._signal(self._process, number, timeout_s)
        self._home.lock_cluster(timeout_s=_LAST_BACKEND_TIMEOUT_S).close()

    def _discard_leftovers(self) -> None:
        """Remove a killed server's files: another process may have its process id now, and postgres would not start."""
        # The lock covers servers that Gatekeeper started. One that was started by hand does not hold it.
        if pids := self._home.postgres_pids():
            raise EmbeddedDatabaseError(
                f"a postgres that Gatekeeper did not start runs on {self._home.cluster} (processes: {pids}): stop it"
            )
        (self._home.cluster / "postmaster.pid").unlink(missing_ok=True)
        for name in (f".s.PGSQL.{PORT}", f".s.PGSQL.{PORT}.lock"):
            (self._socket_dir / name).unlink(missing_ok=True)

    def _launch(self, lock: int) -> None:
        with ExitStack() as stack:
            cluster, sockets = (stack.enter_context(open_directory(p)) for p in (self._home.cluster, self._socket_dir))
            settings = {**self._settings, "unix_socket_directories": lent_path(sockets), "port": str(PORT)}
            arguments = ["-D", lent_path(cluster), *options(settings)]
            self._process = self._programs.launch("postgres", *arguments, lend=(lock, cluster, sockets))
        self._started_s = time.monotonic()

    def _wait_until_ready(self) -> None:
        while not self._is_ready():
            if self.exit_code is not None:
                raise self._programs.failure(f"postgres ended at once with exit code {self.exit_code}")
            if time.monotonic() - self._started_s > _READY_TIMEOUT_S:
                raise self._programs.failure(f"postgres was not ready within {_READY_TIMEOUT_S:g} s")
            if self._stopping.wait(_READY_POLL_S):
                raise EmbeddedDatabaseError("stopped before postgres was ready")

    def _is_ready(self) -> bool:
        status = server_status(self._home.cluster)
        return status is not None and status.is_ready and status.pid == self.pid

    def _signal(self, process: subprocess.Popen[bytes], number: signal.Signals, timeout_s: float) -> None:
        process.send_signal(number)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _log.warning("embedded_postgres_ignores_signal", signal=number.name, waited_s=timeout_s, pid=process.pid)
