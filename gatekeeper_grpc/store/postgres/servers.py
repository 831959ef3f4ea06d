"""The servers of a DSN: finds the one to use, and connects to it without waiting for silent ones.

libpq tries one server after the other and waits for each silent one until its timeout: after a failover from a lost
machine, every new connection would take that long. Here the server of the last connection is tried first; when it fails
or is silent for 0.25 s, the others are tried in parallel, and the first that suits wins.
"""

import math
import re
import select
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import psycopg
import structlog
from psycopg import pq
from psycopg.conninfo import conninfo_attempts, make_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.rows import tuple_row

from gatekeeper_grpc.store.postgres.dsn import read_dsn
from gatekeeper_grpc.store.postgres.errors import ConnectFailed
from gatekeeper_grpc.store.postgres.libpq import sqlstate_of, tell_sqlstate, tell_words
from gatekeeper_grpc.store.postgres.session import with_session_settings
from gatekeeper_grpc.store.postgres.sqlstates import cause_of
from gatekeeper_grpc.store.postgres.statements import TimedCursor

_log = structlog.get_logger(__name__)

_CONNECT_TIMEOUT_S = 2.0
# How long a server may be silent before the next one is tried in parallel.
_HEAD_START_S = 0.25
# How soon a failed server is tried again.
_RETRY_S = 0.1
# A pool that waits for a connection tries as fast as it can, a start as often, and an account may be locked for that.
_RETRY_REFUSED_S = 1.0
_POLL_TIMEOUT_S = 0.05
_EVENTS = {pq.PollingStatus.READING: select.POLLIN, pq.PollingStatus.WRITING: select.POLLOUT}


@dataclass(frozen=True, slots=True)
class Server:
    """One address of a server."""

    host: str
    hostaddr: str
    port: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Warnings:
    """Counts the warnings that a server sends."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, notice: psycopg.errors.Diagnostic) -> None:
        """Take a notice of the server."""
        self.count += notice.severity_nonlocalized == "WARNING"


class Refusals:
    """Accounts that servers refuse until an operator acts: of all that connect with one, one tries each second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the dict
        self._last: dict[Hashable, tuple[ConnectFailed, float]] = {}

    def note(self, account: Hashable, failure: ConnectFailed) -> None:
        """Remember a refusal."""
        with self._lock:
            self._last[account] = failure, time.monotonic()

    def forget(self, account: Hashable) -> None:
        """Forget an account that was accepted."""
        with self._lock:
            self._last.pop(account, None)

    def bar(self, account: Hashable) -> ConnectFailed | None:
        """Return why an account is not to be tried now; None: the caller is the one that tries."""
        with self._lock:
            failure, at = self._last.get(account, (None, -math.inf))
            if failure is None or time.monotonic() < at + _RETRY_REFUSED_S:
                return failure
            self._last[account] = failure, time.monotonic()
            return None


_REFUSALS = Refusals()
_ACCOUNT = ("service", "host", "hostaddr", "port", "dbname", "user", "password", "passfile")


class ServerConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection with its server."""

    server: Server
    warnings: "Warnings"
    dsn: str
    """The DSN that it was made with."""
    has_our_settings = False
    """Whether `set_session` was called."""

    @classmethod
    def connect(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, _conninfo: str = "", *, servers: "Servers", abandon: Callable[[], bool]
    ) -> "ServerConnection":
        """Connect to the server that `servers` finds. The pool calls this method to make its connections.

        Raises:
            OperationalError: See `Servers.connect`.
        """
        return servers.connect(abandon=abandon)


class Servers:
    """Connects to the server that suits, of those in a DSN.

    Args:
        dsn: libpq URI or keywords.
        for_writing: Whether, of several servers, only one that accepts writes suits, see `to_primary`.
        keywords: libpq keywords that override the DSN's.

    Raises:
        InvalidArgument: The DSN cannot be read.
    """

    def __init__(self, dsn: str, *, for_writing: bool = True, **keywords: str) -> None:
        self._read = partial(_Target.of, for_writing=for_writing, keywords=keywords)
        self._target = self._read(dsn)
        self._next: _Target | None = None
        self.last_failure: ConnectFailed | None = None
        """Why a server was not connected to, since the last connection was made; None: there was no failure."""
        self._found: Server | None = None
        self._lock = threading.Lock()  # guards _found, _target and _next against other writers

    def use(self, dsn: str, *, abandon: Callable[[], bool]) -> None:
        """Connect by another DSN from now on, if a connection can be made by it.

        Else nothing changes until the server refuses the account of the DSN in use: then this one is tried at once.

        Raises:
            InvalidArgument: The DSN cannot be read.
            OperationalError: As for `connect`.
        """
        target = self._next = self._read(dsn)
        with closing(self._connect_to(target, deadline=time.monotonic() + _CONNECT_TIMEOUT_S, abandon=abandon)):
            pass

    def connect(
        self, *, abandon: Callable[[], bool] = lambda: False, timeout_s: float | None = None
    ) -> ServerConnection:
        """Connect, retrying for `timeout_s`, 2 s by default, or until `abandon` returns True.

        A server that refuses for a reason that only an operator can remove, such as a wrong password, is asked once,
        and then once a second by all of this process together.

        Raises:
            ConnectionTimeout: A server was silent to the end.
            OperationalError: The error of a server, when each has failed.
        """
        deadline = time.monotonic() + (_CONNECT_TIMEOUT_S if timeout_s is None else timeout_s)
        target = self._wait_for_target(abandon, until=deadline)
        try:
            return self._connect_to(target, deadline=deadline, abandon=abandon)
        except ConnectFailed as refused:
            other = self._next
            if other is None or not _is_permanent(refused):
                raise
        return self._connect_to(other, deadline=deadline, abandon=abandon)

    def _connect_to(self, target: "_Target", *, deadline: float, abandon: Callable[[], bool]) -> ServerConnection:
        """Connect, and use this target from then on.

        Raises:
            OperationalError: As for `connect`.
        """
        note = partial(self._note, target.account)
        attempts = [_Attempt(params, failed=note) for params in conninfo_attempts(target.params)]
        attempts.sort(key=lambda attempt: attempt.server != self._found)
        try:
            winner = _race(attempts, deadline=deadline, abandon=abandon)
            conn = winner.take()
        finally:
            for attempt in attempts:
                attempt.end()
        _REFUSALS.forget(target.account)
        conn.dsn = target.dsn
        self.last_failure = None
        self._remember(target, conn.server)
        return conn

    def is_current(self, conn: ServerConnection) -> bool:
        """Return whether a connection was made by the DSN in use, and leads to the server found last.

        Another server may no longer be the primary, another account no longer be allowed.
        """
        return conn.server == self._found and conn.dsn == self._target.dsn

    def _note(self, account: Hashable, failure: ConnectFailed) -> None:
        self.last_failure = failure
        if _is_permanent(failure):
            _REFUSALS.note(account, failure)

    def _wait_for_target(self, abandon: Callable[[], bool], *, until: float) -> "_Target":
        """Return the target in use as soon as it may be tried; it may change during the wait."""
        while (failure := _REFUSALS.bar((target := self._target).account)) is not None:
            self.last_failure = failure
            if abandon() or time.monotonic() >= until:
                raise failure
            time.sleep(_POLL_TIMEOUT_S)
        return target

    def _remember(self, target: "_Target", server: Server) -> None:
        with self._lock:
            if target is self._next:
                self._target, self._next = target, None
            before, self._found = self._found, server
        if before not in {None, server}:
            _log.warning("database_server_changed", server=str(server), before=str(before))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """What a DSN leads to."""

    dsn: str = field(repr=False)
    params: dict[str, str] = field(repr=False)
    account: Hashable = field(repr=False)
    """What a server may refuse."""

    @classmethod
    def of(cls, dsn: str, *, for_writing: bool, keywords: Mapping[str, str]) -> Self:
        params = read_dsn(dsn)
        params = with_session_settings({**(to_primary(params) if for_writing else params), **keywords})
        return cls(dsn=dsn, params=params, account=tuple(map(params.get, _ACCOUNT)))


def to_primary(params: Mapping[str, str]) -> dict[str, str]:
    """Let parameters lead to the server that accepts writes, unless they set `target_session_attrs` themselves."""
    has_several = "," in f"{params.get('host', '')}{params.get('hostaddr', '')}"
    return {**({"target_session_attrs": "read-write"} if has_several else {}), **params}


class _Attempt:
    """Tries to connect to one server, once for each `start`."""

    def __init__(self, params: dict[str, Any], *, failed: Callable[[ConnectFailed], object]) -> None:
        self._failed = failed
        self.server = Server(*(str(params.get(name) or "") for name in ("host", "hostaddr", "port")))
        self.starts_at = 0.0
        self.error: ConnectFailed | None = None
        self._conninfo = make_conninfo("", **params).encode()
        self._pgconn: pq.abc.PGconn | None = None
        self._status = pq.PollingStatus.FAILED

    @property
    def is_running(self) -> bool:
        return self._pgconn is not None

    def may_succeed(self) -> bool:
        """Return whether it makes sense to go on."""
        return self.is_running or not math.isinf(self.starts_at)

    def start(self) -> bool:
        """Start to connect; return whether the connection is already made."""
        self._pgconn = pq.PGconn.connect_start(self._conninfo)
        tell_sqlstate(self._pgconn)
        return self.advance()

    def advance(self) -> bool:
        """Continue, once the events of `awaited` have occurred; return whether the connection is made."""
        assert self._pgconn is not None  # noqa: S101 - only running attempts advance
        bad = self._pgconn.status == pq.ConnStatus.BAD
        self._status = pq.PollingStatus.FAILED if bad else pq.PollingStatus(self._pgconn.connect_poll())
        if self._status == pq.PollingStatus.FAILED:
            self._fail(self._pgconn.get_error_message())
        return self._status == pq.PollingStatus.OK

    def _fail(self, message: str) -> None:
        self.error = ConnectFailed(_without_values(message), sqlstate_of(message))
        self._failed(self.error)
        self.starts_at = time.monotonic() + (math.inf if _is_permanent(self.error) else _RETRY_S)
        self.end()

    def awaited(self) -> tuple[int, int]:
        """Return the descriptor and the events to poll for."""
        assert self._pgconn is not None  # noqa: S101 - only running attempts wait
        return self._pgconn.socket, _EVENTS[self._status]

    def take(self) -> ServerConnection:
        """Return the connection, which must be made."""
        assert self._pgconn is not None  # noqa: S101 - only finished attempts are taken
        pgconn, self._pgconn = self._pgconn, None
        pgconn.nonblocking = 1
        tell_words(pgconn)
        conn = ServerConnection(pgconn, tuple_row)
        conn.cursor_factory = TimedCursor
        conn.autocommit = True
        conn.server = self.server
        conn.warnings = Warnings()
        conn.add_notice_handler(conn.warnings.note)
        return conn

    def end(self) -> None:
        """Close the connection, unless it was taken."""
        if self._pgconn is not None:
            self._pgconn.finish()
            self._pgconn = None


def _without_values(message: str) -> str:
    """Return a message of libpq without the value of a parameter, which it quotes where it finds fault with it."""
    return message if message.startswith("connection to server") else re.sub('"[^"]*"', "...", message, count=1)


def _is_permanent(failure: ConnectFailed) -> bool:
    cause = cause_of(failure.sqlstate) if failure.sqlstate else None
    return cause is not None and cause.is_permanent


def _race(attempts: Sequence[_Attempt], *, deadline: float, abandon: Callable[[], bool]) -> _Attempt:
    """Return the first attempt that succeeds; failed ones start again, until the deadline."""
    for position, attempt in enumerate(attempts):
        attempt.starts_at = time.monotonic() + position * _HEAD_START_S
    while time.monotonic() < deadline and not abandon() and any(map(_Attempt.may_succeed, attempts)):
        winner = next(filter(_Attempt.start, _due(attempts)), None) or next(
            filter(_Attempt.advance, _ready(attempts)), None
        )
        if winner is not None:
            return winner
    raise _failure(attempts)


def _due(attempts: Sequence[_Attempt]) -> list[_Attempt]:
    """Return the attempts to start now; after the first failure, those that have not been tried are due at once."""
    now = time.monotonic()
    has_failed = any(attempt.error for attempt in attempts)
    return [
        attempt
        for attempt in attempts
        if not attempt.is_running and (now >= attempt.starts_at or (has_failed and attempt.error is None))
    ]


def _ready(attempts: Sequence[_Attempt]) -> list[_Attempt]:
    """Poll the running attempts for at most 50 ms, and return those that can continue."""
    awaiting = {attempt.awaited()[0]: attempt for attempt in attempts if attempt.is_running}
    poll = select.poll()
    for attempt in awaiting.values():
        poll.register(*attempt.awaited())
    return [awaiting[descriptor] for descriptor, _ in poll.poll(_POLL_TIMEOUT_S * 1_000)]


def _failure(attempts: Sequence[_Attempt]) -> psycopg.OperationalError:
    if any(attempt.is_running for attempt in attempts):
        return ConnectionTimeout("a server of the database did not answer in time")
    return next((attempt.error for attempt in attempts if attempt.error), psycopg.OperationalError("not tried"))
