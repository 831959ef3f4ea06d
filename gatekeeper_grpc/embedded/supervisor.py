"""Supervises the embedded database: from `start` to `stop` one thread owns it, restarts it after a crash, and ends it.

The kernel sends postgres SIGINT when the thread that started it ends. So one thread makes every start and lives until
`stop`. A kill -9 of the process ends the thread too, and so the database. Between starts the thread waits for the end
of postgres: it notices a crash at once, and does not wake at rest.
"""

import subprocess
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

import structlog

from gatekeeper_grpc.embedded.account import account_for
from gatekeeper_grpc.embedded.binaries import find_bin_dir, runnable_bin_dir
from gatekeeper_grpc.embedded.cluster import ensure_cluster, ready_pid
from gatekeeper_grpc.embedded.disk_reserve import DiskReserve
from gatekeeper_grpc.embedded.errors import EmbeddedDatabaseError
from gatekeeper_grpc.embedded.home import Home
from gatekeeper_grpc.embedded.locks import is_locked
from gatekeeper_grpc.embedded.postmaster import Postmaster
from gatekeeper_grpc.embedded.programs import Programs
from gatekeeper_grpc.embedded.sockets import dsn, link_socket_directory, socket_directory

_DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "shared_buffers": "128MB",
        "max_connections": "100",
        # A write that Gatekeeper acknowledges is durable: these two settings promise it, whatever a file says.
        "fsync": "on",
        "synchronous_commit": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] ",
        # Faults of the server. Failed statements are reported by their sender, and their text may name people.
        "log_min_messages": "log",
        "log_min_error_statement": "log",
        "log_checkpoints": "off",
        "cluster_name": "gatekeeper",
    }
)
# Cannot be overridden: no 0700 directory protects a TCP port, and a collector would move the log elsewhere.
_FIXED: Mapping[str, str] = MappingProxyType({"listen_addresses": "", "logging_collector": "off"})
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})

# The pause between restarts that fail.
_RETRY_S = 1.0
_JOIN_TIMEOUT_S = 60.0

_log = structlog.get_logger()
_Result = TypeVar("_Result")


class EmbeddedPostgres:
    """A PostgreSQL server with its data in `data_dir`, from `start` to `stop`.

    Any user can start it; for root it runs as `postgres` or `nobody`. Only processes of the user who started it, and of
    root, can connect. Use an object from one thread, but for `wait_until_ready`.
    """

    def __init__(
        self, data_dir: Path, *, bin_dir: Path | None = None, settings: Mapping[str, str] = _NO_SETTINGS
    ) -> None:
        """Describe the database; `start` starts it.

        Args:
            data_dir: Its subdirectory ``postgres`` holds the database; made if missing.
            bin_dir: Directory of PostgreSQL's programs, instead of those of the wheel or the distribution.
            settings: PostgreSQL settings that override the defaults, e.g. ``{"fsync": "off"}`` for tests.
        """
        self._home = Home(data_dir.absolute())
        self._reserve = DiskReserve(self._home.path)
        self._bin_dir = bin_dir
        self._settings = {**_DEFAULTS, **settings, **_FIXED}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._postmaster: Postmaster | None = None
        self._dsn: str | None = None
        # The result of the latest attempt to start: the thread replaces it before each further one.
        self._ready = Future[None]()

    @property
    def dsn(self) -> str:
        """The database's libpq URI; restarts of postgres do not change it.

        Raises:
            EmbeddedDatabaseError: Not started.
        """
        if self._dsn is None:
            raise EmbeddedDatabaseError(f"the embedded database of {self._home.data_dir} is not started")
        return self._dsn

    def start(self) -> None:
        """Start the database, made on first use, and return when it accepts connections.

        Raises:
            EmbeddedDatabaseError: It cannot run; nothing is left running.
        """
        self.begin()
        try:
            self.wait_until_ready()
        except BaseException:  # Ctrl-C included.
            self.stop()
            raise

    def begin(self) -> None:
        """Begin to start the database, and return when its DSN is known. A start that fails is tried again.

        Raises:
            EmbeddedDatabaseError: No attempt can be made, such as because another process uses the data directory;
                nothing is left running.
        """
        if self._thread is not None:
            raise EmbeddedDatabaseError(f"the embedded database of {self._home.data_dir} is started already")
        named, self._ready = Future[str](), Future[None]()
        self._stopping.clear()
        # A daemon thread: if `stop` is not called, the end of the process does not wait for it.
        self._thread = threading.Thread(target=self._supervise, args=(named,), name="embedded-postgres", daemon=True)
        self._thread.start()
        try:
            self._dsn = self._result(named)
        except BaseException:  # Ctrl-C included.
            self.stop()
            raise

    def wait_until_ready(self) -> None:
        """Return when the database accepts connections, from any thread.

        Raises:
            EmbeddedDatabaseError: The latest attempt to start it failed, or `stop` ended it.
        """
        self._result(self._ready)

    def stop(self) -> None:
        """End the database with a fast shutdown, by force if that takes too long; no effect if it is not started.

        Raises:
            EmbeddedDatabaseError: It did not end within a minute.
        """
        if self._thread is None:
            return
        self._stopping.set()
        if self._postmaster is not None:
            self._postmaster.shut_down()  # Its end wakes the thread.
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._thread.is_alive():
            raise EmbeddedDatabaseError(f"the embedded database of {self._home.data_dir} did not stop")
        self._thread = self._postmaster = self._dsn = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _result(self, started: Future[_Result]) -> _Result:
        try:
            return started.result()
        except OSError as error:
            msg = f"the embedded database of {self._home.data_dir} cannot start: {error}"
            raise EmbeddedDatabaseError(msg) from error

    def _supervise(self, named: Future[str]) -> None:
        """Own the database; its DSN goes into `named`."""
        try:
            self._home.create()
            with self._home.claim():
                self._serve(named)
        except Exception as error:  # noqa: BLE001 - a thread's failure goes to the caller of `begin`, or to the log
            if named.done():
                _log.exception("embedded_postgres_lost", data_dir=str(self._home.data_dir))
            else:
                named.set_exception(error)

    def _serve(self, named: Future[str]) -> None:
        programs = self._programs()
        with socket_directory(self._home.socket_link, programs.account) as socket_dir:
            self._postmaster = postmaster = Postmaster(
                home=self._home,
                programs=programs,
                socket_dir=socket_dir,
                settings=self._settings,
                stopping=self._stopping,
            )
            named.set_result(dsn(socket_dir))
            process = self._first_start(postmaster)
            if process is None:
                return
            try:
                self._restart_after_crashes(postmaster, process)
            finally:
                postmaster.stop()
        _log.info("embedded_postgres_stopped", data_dir=str(self._home.data_dir))

    def _first_start(self, postmaster: Postmaster) -> subprocess.Popen[bytes] | None:
        """Try to start the database until it runs; None if it is stopped first."""
        while True:
            try:
                process = self._make_and_start(postmaster)
            except Exception as error:  # noqa: BLE001 - it goes to those who wait for this attempt
                postmaster.shut_down()
                self._ready.set_exception(error)
            else:
                self._ready.set_result(None)
                return process
            if self._stopping.wait(_RETRY_S):
                return None
            self._ready = Future[None]()

    def _make_and_start(self, postmaster: Postmaster) -> subprocess.Popen[bytes]:
        began_s = time.monotonic()
        is_new = ensure_cluster(self._home, postmaster.programs, self._settings)
        link_socket_directory(self._home.socket_link, postmaster.socket_dir)
        process = self._start(postmaster)
        self._reserve.take()
        _log.info(
            "embedded_postgres_started",
            data_dir=str(self._home.data_dir),
            pid=process.pid,
            initialised=is_new,
            took_ms=round((time.monotonic() - began_s) * 1000),
        )
        return process

    def _programs(self) -> Programs:
        self._home.start_log()
        account = account_for(self._home.cluster)
        bin_dir = runnable_bin_dir(find_bin_dir(self._bin_dir), account)
        return Programs(bin_dir=bin_dir, account=account, log=self._home.log)

    def _restart_after_crashes(self, postmaster: Postmaster, process: subprocess.Popen[bytes]) -> None:
        data_dir = str(self._home.data_dir)
        while True:
            exit_code = process.wait()
            if self._stopping.is_set():
                return
            _log.warning("embedded_postgres_died", data_dir=data_dir, pid=process.pid, exit_code=exit_code)
            while (restarted := self._restart(postmaster)) is None:
                if self._stopping.wait(_RETRY_S):
                    return
            process = restarted

    def _start(self, postmaster: Postmaster) -> subprocess.Popen[bytes]:
        self._reserve.give_up_if_full()
        return postmaster.start()

    def _restart(self, postmaster: Postmaster) -> subprocess.Popen[bytes] | None:
        data_dir = str(self._home.data_dir)
        try:
            process = self._start(postmaster)
        except (EmbeddedDatabaseError, OSError) as error:
            _log.error("embedded_postgres_restart_failed", data_dir=data_dir, error=str(error))
            return None
        _log.info("embedded_postgres_restarted", data_dir=data_dir, pid=process.pid)
        return process


def is_disk_full(data_dir: Path) -> bool:
    """Return whether the disk has no room for changes of the embedded database of `data_dir`, if there is one."""
    home = Home(data_dir.absolute())
    return home.path.exists() and DiskReserve(home.path).is_disk_full()


def running_dsn(data_dir: Path) -> str:
    """Return the DSN of the embedded database of `data_dir` that another process runs.

    Raises:
        EmbeddedDatabaseError: It does not run, does not accept connections yet, or this user cannot read its files.
    """
    home = Home(data_dir.absolute())
    try:
        return _running_dsn(home)
    except OSError as error:
        raise EmbeddedDatabaseError(
            f"cannot read {home.path}: {error}; run as the user who started Gatekeeper, or as root"
        ) from error


def _running_dsn(home: Home) -> str:
    if not is_locked(home.postgres_lock):
        raise EmbeddedDatabaseError(
            f"no embedded database runs in {home.data_dir}: start one with `gatekeeper serve`, without DATABASE_URL"
        )
    if ready_pid(home.cluster) is None:
        raise EmbeddedDatabaseError(
            f"the embedded database of {home.data_dir} is starting or stopping: try again in a moment"
        )
    return dsn(home.socket_link.readlink())
