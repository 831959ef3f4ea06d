"""Keeps the embedded database alive: from `start` to `stop` one thread owns it, starts it again when it dies, ends it.

The kernel sends postgres SIGINT when the thread that started it ends, not when the process does. So one thread starts
it every time and lives until `stop`; a kill -9 of the process ends the thread too, and the database with it.
"""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import structlog

from gatekeeper_grpc.embedded.account import account_for
from gatekeeper_grpc.embedded.binaries import find_bin_dir, runnable_bin_dir
from gatekeeper_grpc.embedded.cluster import ensure_cluster, server_status
from gatekeeper_grpc.embedded.errors import EmbeddedDatabaseError
from gatekeeper_grpc.embedded.home import Home
from gatekeeper_grpc.embedded.locks import is_locked
from gatekeeper_grpc.embedded.postmaster import Postmaster
from gatekeeper_grpc.embedded.programs import Programs
from gatekeeper_grpc.embedded.sockets import dsn, socket_directory

_DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "shared_buffers": "128MB",
        "max_connections": "100",
        # A write that Gatekeeper acknowledges is durable: the two settings that promise it, whatever a file says.
        "fsync": "on",
        "synchronous_commit": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] ",
        # What went wrong with the server. Failed statements are their sender's to report, and their text names people.
        "log_min_messages": "log",
        "log_min_error_statement": "log",
        "log_checkpoints": "off",
        "cluster_name": "gatekeeper",
    }
)
# Not to be overridden: behind a TCP port there would be no 0700 directory, and a collector would hide the log from us.
_FIXED: Mapping[str, str] = MappingProxyType({"listen_addresses": "", "logging_collector": "off"})
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

_WATCH_POLL_S = 0.1
_STABLE_S = 60.0  # A server that lived this long did not die of how it was started.
_BACKOFF_FIRST_S = 0.2
_BACKOFF_MAX_S = 15.0
_JOIN_TIMEOUT_S = 60.0

_log = structlog.get_logger()


class EmbeddedPostgres:
    """A PostgreSQL of our own, with its data in `data_dir`, for as long as this object is started.

    Works as root, who lends it to `postgres` or `nobody`, and as any other user. Only processes of the user who starts
    it, and of root, can connect. A started object belongs to one thread; start it before gRPC exists.
    """

    def __init__(
        self, data_dir: Path, *, bin_dir: Path | None = None, settings: Mapping[str, str] = _NO_SETTINGS
    ) -> None:
        """Describe the database; nothing happens before `start`.

        Args:
            data_dir: The database is kept in its subdirectory ``postgres``; made if missing.
            bin_dir: Directory of PostgreSQL's programs, instead of those of the wheel or the distribution.
            settings: PostgreSQL settings that win over ours, e.g. ``{"fsync": "off"}`` for tests.
        """
        self._home = Home(data_dir.absolute())
        self._bin_dir = bin_dir
        self._settings = {**_DEFAULTS, **settings, **_FIXED}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._dsn: str | None = None
        self._initialised = False

    @property
    def dsn(self) -> str:
        """The database's libpq URI; stays the same through restarts of postgres, until `stop`.

        Raises:
            EmbeddedDatabaseError: Not started.
        """
        if self._dsn is None:
            raise EmbeddedDatabaseError(f"the embedded database of {self._home.data_dir} is not started")
        return self._dsn

    @property
    def initialised(self) -> bool:
        """Whether the last start made the database, empty, because there was none."""
        return self._initialised

    def start(self) -> None:
        """Start the database, made on first use, and return when it takes connections.

        Raises:
            EmbeddedDatabaseError: It cannot run; nothing is left running.
        """
        if self._thread is not None:
            raise EmbeddedDatabaseError(f"the embedded database of {self._home.data_dir} is started already")
        started: Future[str] = Future()
        self._stopping.clear()
        # A daemon: should somebody forget `stop`, the end of the process must not wait for it.
        self._thread = threading.Thread(target=self._supervise, args=(started,), name="embedded-postgres", daemon=True)
        self._thread.start()
        try:
            self._dsn = started.result()
        except BaseException as error:  # Ctrl-C included.
            self.stop()
            if isinstance(error, OSError):
                msg = f"the embedded database of {self._home.data_dir} cannot start: {error}"
                raise EmbeddedDatabaseError(msg) from error
            raise

    def stop(self) -> None:
        """End the database with a fast shutdown, by force if it takes too long; does nothing when it is not started."""
        if self._thread is None:
            return
        self._stopping.set()
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            raise EmbeddedDatabaseError(f"the embedded database of {self._home.data_dir} did not stop")
        self._thread = None
        self._dsn = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _supervise(self, started: Future[str]) -> None:
        """Own the database; the outcome of its start goes into `started`."""
        try:
            self._home.create()
            with self._home.claim():
                self._serve(started)
        except Exception as error:  # noqa: BLE001 - a thread's failures go to the caller of `start`, then to the log
            if started.done():
                _log.exception("embedded_postgres_lost", data_dir=str(self._home.data_dir))
            else:
                started.set_exception(error)

    def _serve(self, started: Future[str]) -> None:
        began_s = time.monotonic()
        programs = self._programs()
        self._initialised = ensure_cluster(self._home, programs, self._settings)
        with socket_directory(self._home.socket_link, programs.account) as socket_dir:
            postmaster = Postmaster(
                home=self._home,
                programs=programs,
                socket_dir=socket_dir,
                settings=self._settings,
                stopping=self._stopping,
            )
            postmaster.start()
            self._log_start(postmaster, took_s=time.monotonic() - began_s)
            started.set_result(dsn(socket_dir))
            try:
                self._watch(postmaster)
            finally:
                postmaster.stop()
        _log.info("embedded_postgres_stopped", data_dir=str(self._home.data_dir))

    def _programs(self) -> Programs:
        self._home.start_log()
        account = account_for(self._home.cluster)
        bin_dir = runnable_bin_dir(find_bin_dir(self._bin_dir), account)
        return Programs(bin_dir=bin_dir, account=account, log=self._home.log)

    def _watch(self, postmaster: Postmaster) -> None:
        """Start the server again whenever it has died, the more patiently the sooner it died."""
        failures = 0
        while not self._stopping.wait(_WATCH_POLL_S):
            if postmaster.exit_code is None:
                failures = 0 if postmaster.uptime_s() > _STABLE_S else failures
                continue
            if failures and self._stopping.wait(backoff_s(failures)):
                return
            failures += 1
            self._restart(postmaster, attempt=failures)

    def _restart(self, postmaster: Postmaster, *, attempt: int) -> None:
        fields = {"data_dir": str(self._home.data_dir), "attempt": attempt}
        _log.warning("embedded_postgres_died", pid=postmaster.pid, exit_code=postmaster.exit_code, **fields)
        try:
            postmaster.start()
        except (EmbeddedDatabaseError, OSError) as error:
            _log.error("embedded_postgres_restart_failed", error=str(error), **fields)
        else:
            _log.info("embedded_postgres_restarted", pid=postmaster.pid, **fields)

    def _log_start(self, postmaster: Postmaster, *, took_s: float) -> None:
        _log.info(
            "embedded_postgres_started",
            data_dir=str(self._home.data_dir),
            pid=postmaster.pid,
            initialised=self._initialised,
            took_ms=round(took_s * 1000),
        )


def running_dsn(data_dir: Path) -> str:
    """Give the DSN of the embedded database of `data_dir` that another process runs.

    Raises:
        EmbeddedDatabaseError: None runs, or it does not take connections yet, or its files are not ours to read.
    """
    home = Home(data_dir.absolute())
    try:
        return _running_dsn(home)
    except OSError as error:
        raise EmbeddedDatabaseError(
            f"cannot look into {home.path}: {error}; run as the user who started Gatekeeper, or as root"
        ) from error


def backoff_s(failures: int) -> float:
    """Seconds to wait before the next start, after `failures` (1 or more) in a row."""
    return float(min(_BACKOFF_FIRST_S * 2 ** min(failures - 1, 10), _BACKOFF_MAX_S))


def _running_dsn(home: Home) -> str:
    if not is_locked(home.postgres_lock):
        raise EmbeddedDatabaseError(
            f"no embedded database runs in {home.data_dir}: start one with `gatekeeper serve`, without DATABASE_URL"
        )
    status = server_status(home.cluster)
    if status is None or not status.is_ready:
        raise EmbeddedDatabaseError(
            f"the embedded database of {home.data_dir} is starting or stopping: try again in a moment"
        )
    return dsn(home.socket_link.readlink())
