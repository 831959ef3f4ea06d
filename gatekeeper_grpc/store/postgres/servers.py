"""The servers that a DSN names: finds the one to talk to, and connects to it without waiting for those that are silent.

libpq tries one server after the other and waits for each that is silent until its timeout: after a failover away from a
machine that is gone, every new connection would take that long. Here the server found last is tried first; when it
fails or is silent for a moment, the others are tried beside it, and the first that suits wins.
"""

import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog
from psycopg import pq
from psycopg.conninfo import conninfo_attempts, conninfo_to_dict, make_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.rows import tuple_row

_log = structlog.get_logger(__name__)

_CONNECT_TIMEOUT_S = 2.0
# How long a server may be silent before the next one is tried as well.
_HEAD_START_S = 0.25
# How soon a server that failed is tried again.
_RETRY_S = 0.1
_WAIT_AT_MOST_S = 0.05
_EVENTS = {pq.PollingStatus.READING: select.POLLIN, pq.PollingStatus.WRITING: select.POLLOUT}


@dataclass(frozen=True, slots=True)
class Server:
    """One address of a server."""

    host: str
    hostaddr: str
    port: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class ServerConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that knows which server it leads to."""

    server: Server

    @classmethod
    def connect(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, _conninfo: str = "", *, servers: "Servers", abandon: Callable[[], bool]
    ) -> "ServerConnection":
        """Connect to the server that `servers` finds. The pool makes its connections with this method."""
        return servers.connect(abandon=abandon)


class Servers:
    """Connects to the server that suits, among those that a DSN names.

    Args:
        dsn: libpq URI or keywords.
        for_writing: Whether, of several servers, only one that takes writes suits, see `to_primary`.
        settings: libpq keywords that win over the DSN's.
    """

    def __init__(self, dsn: str, *, for_writing: bool = True, **settings: str) -> None:
        self._params = conninfo_to_dict(to_primary(dsn) if for_writing else dsn, **settings)
        self._found: Server | None = None
        self._noting = threading.Lock()  # guards _found against other writers

    def connect(self, *, abandon: Callable[[], bool] = lambda: False) -> ServerConnection:
        """Connect, trying again and again for 2 s, or until `abandon` says that it is of no use.

        Errors: `ConnectionTimeout` when a server was silent to the end, else what the last one said, an
        `OperationalError`.
        """
        attempts = [_Attempt(params) for params in conninfo_attempts(self._params)]
        attempts.sort(key=lambda attempt: attempt.server != self._found)
        try:
            winner = _race(attempts, deadline=time.monotonic() + _CONNECT_TIMEOUT_S, abandon=abandon)
            conn = winner.take()
        finally:
            for attempt in attempts:
                attempt.end()
        self._note(conn.server)
        return conn

    def is_current(self, conn: ServerConnection) -> bool:
        """Whether a connection leads to the server found last, and not to one that may be primary no more."""
        return conn.server == self._found

    def _note(self, server: Server) -> None:
        with self._noting:
            before, self._found = self._found, server
        if before not in {None, server}:
            _log.warning("database_server_changed", server=str(server), before=str(before))


def to_primary(dsn: str) -> str:
    """Return a DSN that, of several servers, leads to the one that takes writes, unless it says itself what suits."""
    params = conninfo_to_dict(dsn)
    if "," in f"{params.get('host', '')}{params.get('hostaddr', '')}":
        params.setdefault("target_session_attrs", "read-write")
    return make_conninfo("", **params)


class _Attempt:
    """Tries to connect to one server, once for each `start`."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.server = Server(*(str(params.get(name) or "") for name in ("host", "hostaddr", "port")))
        self.starts_at = 0.0
        self.error: psycopg.OperationalError | None = None
        self._conninfo = make_conninfo("", **params).encode()
        self._pgconn: pq.abc.PGconn | None = None
        self._status = pq.PollingStatus.FAILED

    @property
    def is_running(self) -> bool:
        return self._pgconn is not None

    def start(self) -> bool:
        """Begin; tell whether it has succeeded already."""
        self._pgconn = pq.PGconn.connect_start(self._conninfo)
        return self.advance()

    def advance(self) -> bool:
        """Go on, when what `awaited` says has come; tell whether it has succeeded."""
        assert self._pgconn is not None  # noqa: S101 - only what runs is advanced
        bad = self._pgconn.status == pq.ConnStatus.BAD
        self._status = pq.PollingStatus.FAILED if bad else pq.PollingStatus(self._pgconn.connect_poll())
        if self._status == pq.PollingStatus.FAILED:
            self.error = psycopg.OperationalError(self._pgconn.get_error_message())
            self.starts_at = time.monotonic() + _RETRY_S
            self.end()
        return self._status == pq.PollingStatus.OK

    def awaited(self) -> tuple[int, int]:
        """The descriptor and the events that it waits for."""
        assert self._pgconn is not None  # noqa: S101 - only what runs waits
        return self._pgconn.socket, _EVENTS[self._status]

    def take(self) -> ServerConnection:
        """Return the connection, once it has succeeded."""
        assert self._pgconn is not None  # noqa: S101 - only what succeeded is taken
        pgconn, self._pgconn = self._pgconn, None
        pgconn.nonblocking = 1
        conn = ServerConnection(pgconn, tuple_row)
        conn.autocommit = True
        conn.server = self.server
        return conn

    def end(self) -> None:
        """Close what was begun and not taken."""
        if self._pgconn is not None:
            self._pgconn.finish()
            self._pgconn = None


def _race(attempts: Sequence[_Attempt], *, deadline: float, abandon: Callable[[], bool]) -> _Attempt:
    """Return the first attempt that succeeds; whoever fails is started again, until the deadline."""
    for place, attempt in enumerate(attempts):
        attempt.starts_at = time.monotonic() + place * _HEAD_START_S
    while (now := time.monotonic()) < deadline and not abandon():
        failed = any(attempt.error for attempt in attempts)
        for attempt in attempts:
            is_due = now >= attempt.starts_at or (failed and attempt.error is None)
            if not attempt.is_running and is_due and attempt.start():
                return attempt
        for attempt in _ready(attempts):
            if attempt.advance():
                return attempt
    if any(attempt.is_running for attempt in attempts):
        raise ConnectionTimeout("a server of the database did not answer in time")
    raise next((attempt.error for attempt in attempts if attempt.error), psycopg.OperationalError("not tried"))


def _ready(attempts: Sequence[_Attempt]) -> list[_Attempt]:
    """Wait a moment for what the running attempts wait for, and return those that can go on."""
    awaiting = {attempt.awaited()[0]: attempt for attempt in attempts if attempt.is_running}
    poll = select.poll()
    for attempt in awaiting.values():
        poll.register(*attempt.awaited())
    return [awaiting[descriptor] for descriptor, _ in poll.poll(_WAIT_AT_MOST_S * 1_000)]
