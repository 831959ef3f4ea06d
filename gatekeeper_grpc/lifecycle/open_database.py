"""Opens the database for serving: at the start, or as soon as it is there and fit, however much later that is."""

import math
import threading
import time
from collections.abc import Callable

import structlog

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.periodic import Periodic

_log = structlog.get_logger(__name__)

_RETRY_S = 0.25
# An attempt may hang for longer, on a database that does; nothing comes of it any more.
_CLOSE_TIMEOUT_S = 0.5
# Short, so that a signal which the kernel handed to another thread is noticed.
_WAIT_STEP_S = 0.05


class DatabaseConnector:
    """Prepares the database in a thread of its own, again and again until that succeeds, and then opens it, once.

    Args:
        prepare: Makes the database fit to be served from, or raises why it is not; `Unavailable` when it is away.
        then: Begins to read it and to write to it.
    """

    def __init__(self, prepare: Callable[[], object], then: Callable[[], object]) -> None:
        self._prepare = prepare
        self._then = then
        self._failure: Exception | None = None
        self._is_open = threading.Event()
        self._is_reporting = False
        self._attempts = Periodic("open_database", self._attempt, interval_s=_RETRY_S)

    @property
    def failure(self) -> Exception | None:
        """Why the database is not open; None when it is, or when that is not known yet."""
        return self._failure

    @property
    def is_open(self) -> bool:
        """Whether the database is open."""
        return self._is_open.is_set()

    @property
    def is_refused(self) -> bool:
        """Whether the database is there and not fit to be served from, such as one with another schema."""
        return self._failure is not None and not isinstance(self._failure, Unavailable)

    def start(self) -> None:
        """Start the thread."""
        self._attempts.start()

    def close(self) -> None:
        """Give up what is not open yet."""
        self._attempts.close(timeout_s=_CLOSE_TIMEOUT_S)

    def wait_until(self, condition: Callable[[], bool], *, timeout_s: float = math.inf) -> None:
        """Wait until a condition holds, or the database turns out to be unfit."""
        until = time.monotonic() + timeout_s
        while not condition() and not self.is_refused and (remaining_s := until - time.monotonic()) > 0:
            time.sleep(min(_WAIT_STEP_S / 5, remaining_s))

    def wait_until_open(self) -> None:
        """Wait for the end of the first attempt; raises why it failed."""
        while not self._is_open.wait(_WAIT_STEP_S):
            if self._failure:
                raise self._failure

    def report(self) -> None:
        """From now on, log what keeps the database from being opened, whenever that changes."""
        self._is_reporting = True
        if self._failure:
            self._log_failure(self._failure)

    def _attempt(self) -> None:
        try:
            self._prepare()
        except Exception as exc:  # noqa: BLE001 - whatever it is, it goes to whoever waits, or to the log
            before, self._failure = self._failure, exc
            if self._is_reporting and _words(before) != _words(exc):
                self._log_failure(exc)
            return
        if self._attempts.is_stopping:
            return
        self._attempts.stop()
        self._failure = None
        self._then()
        self._is_open.set()
        if self._is_reporting:
            _log.info("database_opened")

    def _log_failure(self, exc: Exception) -> None:
        if isinstance(exc, Unavailable):
            _log.warning("database_away", error=str(exc), remedy="none is needed: it is tried again until it is there")
        else:
            _log.error("database_refused", error=str(exc), kind=type(exc).__name__)


def _words(exc: Exception | None) -> str:
    """Say what tells one state from another: a database that is away is away, whatever it looks like."""
    return "" if exc is None else "away" if isinstance(exc, Unavailable) else str(exc)
