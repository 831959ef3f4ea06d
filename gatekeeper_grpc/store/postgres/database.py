"""Connections: one pool, opened once, and the kinds of transaction that the store is made of.

Each step has a bound of its own: a connection within 1 s and four round trips, a lock within a second or eight round
trips, a statement within what the caller has left, a COMMIT within two seconds or so (decisions 0019 and 0020).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any, LiteralString, TypeVar

import psycopg
import psycopg_pool
import structlog
from psycopg import IsolationLevel
from psycopg import errors as pg
from psycopg_pool import ConnectionPool

from gatekeeper_grpc.domain.current_call import is_abandoned, time_left_s
from gatekeeper_grpc.domain.errors import Busy, CallAbandoned, Unavailable
from gatekeeper_grpc.instrumentation.counters import DATABASE_WAIT
from gatekeeper_grpc.instrumentation.spans import current_note, noted
from gatekeeper_grpc.store.postgres.caller_check import require_current_caller
from gatekeeper_grpc.store.postgres.errors import (
    DATABASE_ERRORS,
    CommitUnconfirmed,
    ConnectionLost,
    ForeignLock,
    WriterQueue,
    translated_errors,
)
from gatekeeper_grpc.store.postgres.hang_watch import HangWatch
from gatekeeper_grpc.store.postgres.locks import LockHolder, find_lock_holder
from gatekeeper_grpc.store.postgres.servers import ServerConnection, Servers
from gatekeeper_grpc.store.postgres.session import set_session
from gatekeeper_grpc.store.postgres.sqlstates import BUSY
from gatekeeper_grpc.store.postgres.statements import PIPELINE_DURATION, note_answers, note_statement
from gatekeeper_grpc.store.postgres.turns import Turns

_log = structlog.get_logger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]
Row = TypeVar("Row")

APPLICATION_NAME = "gatekeeper"

_ACQUIRE_TIMEOUT_S = 1.0
# With TLS and SCRAM, a new connection takes more, and the next call finds it.
_ACQUIRE_ROUND_TRIPS = 4
_MAX_WAITING = 100
# On a database that gets on, no lock is held for longer; a network with long round trips gets some of them.
_LOCK_TIMEOUT_S = 1.0
_LOCK_ROUND_TRIPS = 8
# Of those who wait for the head row, one waits twice: for its turn, and then for the session that has locked it.
# PostgreSQL bounds each wait alone. Both together take less than the 2 s in which a caller is answered.
_HEAD_WAITS = 1.5
# With the interval of the watch, a COMMIT takes less than two seconds.
_COMMIT_TIMEOUT_S = 1.5
# Beyond the server's own limit: a statement that waits for the server's disk cannot be cancelled.
_STATEMENT_MARGIN_S = 1.0
# How many rows of a COPY are waited for together.
_COPIED_ROWS = 1_000
# How soon the average of the round trips follows a change, as in TCP (RFC 6298).
_ROUND_TRIP_WEIGHT = 1 / 8
_RETRY_AFTER_S = 1.0
_REPORT_HOLDER_EVERY_S = 10.0
# A server whose WAL cannot grow ends, and for so long after it said that, a server that is down has the same cause.
_FULL_FOR_S = 30.0
_DOWN = frozenset({None, "57P03"})


class Database:
    """The pool of connections to one database. Thread-safe; `close` it when done.

    Args:
        dsn: libpq URI or keywords. Of several servers, the pool finds and follows the primary.
        pool_size: The maximum number of connections.
        pool_min_size: How many are kept open although nothing uses them; at most `pool_size` are.
        pool_idle_s: After how long without use the others are closed.
        pool_wait_s: How long a transaction waits for a connection, and four round trips.
        statement_timeout_s: The maximum duration of a statement; less if the caller has less time left.
        hung_after_s: A server that answers nothing for so long counts as hung, on a busy machine after four times as
            long: calls that wait for it fail with `Unavailable`, and new ones fail at once, until it answers again.
            None: no watch.
        for_writing: Whether, of several servers, only the primary suits.
        is_storage_full: Tells whether the disk of the server is full, if it is a disk of this machine.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 10,
        pool_min_size: int = 2,
        pool_idle_s: float = 600.0,
        pool_wait_s: float = _ACQUIRE_TIMEOUT_S,
        statement_timeout_s: float = 30.0,
        hung_after_s: float | None = None,
        for_writing: bool = True,
        is_storage_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self.dsn = dsn
        self._hung_after_s = hung_after_s
        self._statement_timeout_s = statement_timeout_s
        self._pool_wait_s = pool_wait_s
        self._is_storage_full = is_storage_full
        self._full_at = -math.inf
        self._closing = False
        self._servers = Servers(
            dsn,
            for_writing=for_writing,
            application_name=APPLICATION_NAME,
        )
        self.round_trip_s = 0.0
        """Average of the latest round trips to the server."""
        # Others of the pool's connections are for reads, and for writes that do not lock the head.
        self._head_turns = Turns(max(1, pool_size // 2))
        self.lock_holder: LockHolder | None = None
        """The session that last made a call fail by its lock."""
        self._holder_reported_at = -math.inf
        self._watch = HangWatch(self._servers, on_hang=self._renew)
        self._pool = ConnectionPool(
            connection_class=ServerConnection,
            kwargs={"servers": self._servers, "abandon": self._must_abandon},
            min_size=min(pool_min_size, pool_size),
            max_size=pool_size,
            max_idle=pool_idle_s,
            max_waiting=_MAX_WAITING,
            timeout=pool_wait_s,
            # The pool's back-off of 1 s, 2 s, 4 s, ... would double each outage. Without it, each request for a
            # connection makes the pool try.
            reconnect_timeout=0,
            reconnect_failed=self._retry_for_waiting_requests,
            # Two: a server that does not answer must not keep the pool from connecting to another one.
            num_workers=2,
            name="gatekeeper-pool",
            open=False,
        )

    def open(self) -> None:
        """Start to connect in the background; an unreachable database fails the first use."""
        self._pool.open()
        if self._hung_after_s is not None:
            self._watch.start(hung_after_s=self._hung_after_s)

    def use(self, dsn: str) -> None:
        """Connect by another DSN from now on, if a connection can be made by it.

        Else nothing changes until the server refuses the account of the DSN in use: then this one is tried at once.
        Idle connections by the old DSN are closed, and those in use when they are returned.

        Raises:
            InvalidArgument: The DSN cannot be read.
            Unavailable: The server cannot be reached by it, or refuses the account.
        """
        with translated_errors():
            self._servers.use(dsn, abandon=lambda: self._closing)
        self.dsn = dsn
        self._renew()

    def close(self) -> None:
        """Close all connections; waits at most 2 s for those in use."""
        self._closing = True
        self._watch.close()
        self._pool.close(timeout=2.0)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read-only transaction that sees one state of the database.

        In a call with an access token, it first compares the caller with the stored admin user.

        Raises:
            Unauthenticated: The caller was demoted, disabled, deleted, logged out or given another password.
            Busy: No connection is free within 1 s, or a table is locked.
            Unavailable: The database cannot be reached or hangs.
        """
        with self._transaction(IsolationLevel.REPEATABLE_READ, read_only=True) as conn:
            require_current_caller(conn)
            yield conn

    @contextmanager
    def read_and_record(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the database, like `read`, and may record that it was read.

        Raises:
            GatekeeperError: As for `read`.
            Unavailable: The database accepts no writes, or did not confirm the record.
        """
        try:
            with self._transaction(IsolationLevel.REPEATABLE_READ, read_only=False) as conn:
                require_current_caller(conn)
                yield conn
        except CommitUnconfirmed as exc:
            unrecorded = "the database did not confirm the record of this read"
            raise ConnectionLost(unrecorded, retry_after_s=_RETRY_AFTER_S) from exc

    @contextmanager
    def copying(
        self, conn: Connection, statement: LiteralString, *, types: Sequence[LiteralString]
    ) -> Iterator[Iterator[tuple[Any, ...]]]:
        """Execute a `COPY ... TO STDOUT` in a transaction; yield its rows, to be read to the end, as they come.

        A COPY takes as long as its reader. So PostgreSQL does not bound it, and it is not timed as a statement. But if
        1,000 rows take longer than a statement may, the connection is closed, like one of a statement that cannot be
        cancelled; this needs the watch.

        Args:
            conn: The connection of the transaction, which does nothing else until then.
            statement: The COPY.
            types: The types of its columns, as PostgreSQL calls them.
        """
        self._expect_end(conn, within_s=self._statement_limit_s())
        conn.execute(_LIMIT_STATEMENT, {"statement_timeout": "0"})
        with conn.cursor().copy(statement) as copy:
            copy.set_types(types)
            yield self._bounded(conn, copy.rows())
        conn.execute(_LIMIT_STATEMENT, {"statement_timeout": _milliseconds(self._statement_limit_s())})

    def _bounded(self, conn: Connection, rows: Iterable[Row]) -> Iterator[Row]:
        for number, row in enumerate(rows):
            if number % _COPIED_ROWS == 0:
                self._expect_end(conn, within_s=self._statement_limit_s())
            yield row
        self._expect_end(conn, within_s=time_left_s())

    def check_caller(self) -> None:
        """Compare the caller of the current call with the stored admin user now.

        Raises:
            Unauthenticated: As for `read`.
            Unavailable: As for `read`.
        """
        with self.read():
            pass

    @contextmanager
    def write(self, *, pipelined: bool = False) -> Iterator[Connection]:
        """Open a read-write transaction: committed at the end, rolled back if anything is raised.

        Args:
            pipelined: Whether a statement is sent without a wait for the one before, until a result is fetched: locks
                are held for fewer round trips. Then `rowcount` is unknown until a fetch, an error may come from a later
                statement, and there are no named cursors.

        Raises:
            Busy: A lock is not free, or no connection.
            CallAbandoned: The caller is gone; nothing was changed.
            OutcomeUnknown: The database did not confirm the commit in time, or only a part of it.
            Unavailable: As for `read`, or a commit that was given up still waits in the database.
            GatekeeperError: See `translated_errors`.
        """
        if self._watch.has_unsettled():
            raise Unavailable(_STALLED, reason="COMMITS_STALLED", retry_after_s=_RETRY_AFTER_S)
        with self._transaction(IsolationLevel.READ_COMMITTED, read_only=False, pipelined=pipelined) as conn:
            yield conn

    @contextmanager
    def write_at_head(self, *, pipelined: bool = True) -> Iterator[Connection]:
        """Open a read-write transaction that is going to lock the head row, which serialises all mutations.

        Such transactions have half of the pool at most, in the order in which they came. While another session keeps
        the row locked, one at a time tries; the others are refused at once.

        Args:
            pipelined: As for `write`.

        Raises:
            GatekeeperError: As for `write`.
        """
        with self._head_turns.turn(within_s=self._statement_limit_s()), self.write(pipelined=pipelined) as conn:
            yield conn

    @contextmanager
    def dedicated(self) -> Iterator[ServerConnection]:
        """Open a connection outside the pool, in autocommit, for listening.

        Raises:
            Unavailable: The database cannot be reached or hangs.
        """
        with (
            translated_errors(),
            closing(self._servers.connect(abandon=self._must_abandon)) as conn,
            self._watch.guard(conn, keeps_awake=False),
        ):
            yield conn

    def has_stalled_commits(self) -> bool:
        """Return whether writes are refused because a COMMIT that was given up still waits in the server."""
        return self._watch.has_unsettled()

    def connections(self) -> Mapping[str, int]:
        """Return how many connections of the pool are idle, how many are used, and how many calls wait for one."""
        stats = self._pool.get_stats()
        idle = stats.get("pool_available", 0)
        used = max(0, stats.get("pool_size", 0) - idle)
        return {"idle": idle, "used": used, "waited_for": stats.get("requests_waiting", 0)}

    @property
    def max_connections(self) -> int:
        """How many connections the pool may have."""
        return self._pool.max_size

    def is_current(self, conn: ServerConnection) -> bool:
        """Return whether a connection is like new ones; after a failover or another DSN it is not."""
        return self._servers.is_current(conn)

    @contextmanager
    def _transaction(self, level: IsolationLevel, *, read_only: bool, pipelined: bool = False) -> Iterator[Connection]:
        with translated_errors():
            if not read_only and self._is_storage_full():
                # The server would end if it had no room for its WAL, and take the reads with it.
                raise pg.DiskFull("there is no room for WAL")
        with translated_errors(), noted("transaction"), self._connection() as conn:
            if conn.isolation_level is not level:
                conn.isolation_level = level
            # None sends a plain BEGIN: BEGIN READ WRITE would override the setting that fences a former primary.
            access = True if read_only else None
            if conn.read_only is not access:
                conn.read_only = access
            try:
                with _Commit(conn) as commit, (_pipelined if pipelined else _each_awaited)(conn) as await_all:
                    yield conn
                    await_all()
                    note_answers()
                    if not read_only:
                        self._expect_commit(conn, commit)
            except (pg.DiskFull, CommitUnconfirmed) as exc:
                self._note_full_disk(exc)
                raise
            except pg.ReadOnlySqlTransaction:
                if not read_only:
                    self._renew()  # The server no longer accepts writes: another one may.
                raise
            except pg.LockNotAvailable as exc:
                error = self._blocked(conn)
                DATABASE_ERRORS.note(exc, reason=error.reason)
                raise error from exc

    def _expect_commit(self, conn: ServerConnection, commit: "_Commit") -> None:
        """Bound the COMMIT that comes next, for which PostgreSQL has no timeout.

        Raises:
            CallAbandoned: The caller is gone, so nobody would learn of the change.
        """
        if is_abandoned():
            raise _abandoned()
        within_s = max(_COMMIT_TIMEOUT_S, _LOCK_ROUND_TRIPS * self.round_trip_s)
        self._watch.expect_answer(conn, within_s=within_s, is_committing=True)
        commit.begin()

    def _note_full_disk(self, exc: Exception) -> None:
        cause = exc.__cause__ if isinstance(exc, CommitUnconfirmed) else exc
        if isinstance(cause, pg.DiskFull):
            self._full_at = time.monotonic()
        if cause is not exc and isinstance(cause, psycopg.Error):
            DATABASE_ERRORS.note(cause, reason=CommitUnconfirmed.reason)

    def _blocked(self, conn: ServerConnection) -> Busy:
        """Find out why a lock was not free, on the connection that waited for it and has rolled back."""
        holder = find_lock_holder(conn, application_name=APPLICATION_NAME, stuck_after_s=self._lock_timeout_s())
        if holder is None:
            return WriterQueue.too_long()
        self._report(holder)
        return ForeignLock.held()

    def _report(self, holder: LockHolder) -> None:
        before, self.lock_holder = self.lock_holder, holder
        if before and before.pid == holder.pid and holder.seen_at < self._holder_reported_at + _REPORT_HOLDER_EVERY_S:
            return
        self._holder_reported_at = holder.seen_at
        _log.warning(
            "database_locked",
            pid=holder.pid,
            application=holder.application_name,
            state=holder.state,
            waits_for=holder.waits_for,
            open_for_s=holder.open_for_s and round(holder.open_for_s, 1),
        )

    def limits_at_head(self) -> Mapping[str, str]:
        """Return the `statement_timeout` of the statement that locks the head row, `to_lock`, and of those `after`."""
        after_s = self._statement_limit_s()
        to_lock_s = min(after_s, _HEAD_WAITS * self._lock_timeout_s())
        return {"to_lock": _milliseconds(to_lock_s), "after": _milliseconds(after_s)}

    def _statement_limit_s(self) -> float:
        return min(self._statement_timeout_s, time_left_s())

    def _lock_timeout_s(self) -> float:
        return max(_LOCK_TIMEOUT_S, _LOCK_ROUND_TRIPS * self.round_trip_s)

    def _retry_for_waiting_requests(self, pool: ConnectionPool[ServerConnection]) -> None:
        """Make the pool try again for requests that wait already: by itself it does so only for the next one."""
        if pool.get_stats().get("requests_waiting") and not self._must_abandon():
            pool.check()

    def _must_abandon(self) -> bool:
        """Return whether connecting is pointless."""
        return self._closing or self._watch.is_hung()

    def _renew(self) -> None:
        """Discard the pool's connections: idle ones now, those in use when they are returned."""
        if not self._pool.closed:
            self._pool.drain()

    @contextmanager
    def _connection(self) -> Iterator[ServerConnection]:
        conn = self._acquire()
        try:
            with self._watch.guard(conn):
                self._expect_end(conn, within_s=time_left_s())
                yield conn
        finally:
            self._pool.putconn(conn)

    def _expect_end(self, conn: Connection, *, within_s: float) -> None:
        """Have the watch close a connection that is still in use then."""
        self._watch.expect_answer(conn, within_s=within_s + _STATEMENT_MARGIN_S, is_committing=False)

    def _acquire(self) -> ServerConnection:
        """Take a live connection. The pool's own `check` sleeps for a second after each dead one."""
        began_at = time.monotonic()
        deadline = began_at + self._pool_wait_s + _ACQUIRE_ROUND_TRIPS * self.round_trip_s
        while not self._watch.is_hung():
            conn = self._take(timeout_s=max(0.0, deadline - time.monotonic()))
            waited_s = time.monotonic() - began_at
            DATABASE_WAIT.observe(waited_s)
            if (note := current_note()) is not None:
                note.attributes["gatekeeper.connection_wait_s"] = waited_s
            if self._prepare(conn):
                return conn
            conn.close()
            self._pool.putconn(conn)  # The pool replaces a closed one.
        raise psycopg.OperationalError("the database does not answer")

    def _take(self, *, timeout_s: float) -> ServerConnection:
        try:
            return self._pool.getconn(timeout=timeout_s)
        except (psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests) as exc:
            failure = self._servers.last_failure
            if failure and failure.sqlstate in _DOWN and self._is_full():
                raise pg.DiskFull("the server went down with a full disk") from exc
            if failure:
                raise failure from exc
            if self._watch.in_use() >= self._pool.max_size:
                raise Busy(BUSY.text, reason=BUSY.reason, retry_after_s=_RETRY_AFTER_S) from exc
            raise

    def _is_full(self) -> bool:
        """Return whether a server that is down had a full disk: it said so itself, or one can see it."""
        return time.monotonic() - self._full_at < _FULL_FOR_S or self._is_storage_full()

    def _prepare(self, conn: ServerConnection) -> bool:
        """Set the limits of the call; return whether the connection works and leads to the server of new ones.

        Raises:
            CallAbandoned: The caller is gone.
        """
        if not self._servers.is_current(conn):
            return False
        timeout_s = self._statement_limit_s()
        if timeout_s <= 0 or is_abandoned():
            self._pool.putconn(conn)
            raise _abandoned()
        limits = {
            "statement_timeout": _milliseconds(timeout_s),
            "lock_timeout": _milliseconds(self._lock_timeout_s()),
        }
        try:
            with self._watch.guard(conn):
                began_at = time.monotonic()
                _set(conn, limits)
        except psycopg.OperationalError:
            return False
        self.round_trip_s += _ROUND_TRIP_WEIGHT * (time.monotonic() - began_at - self.round_trip_s)
        return True


_STALLED = (
    "an earlier change still waits in the database to be confirmed, by a synchronous standby or by the disk; nothing"
    " was changed"
)
# In autocommit, for the session: the transaction would need a round trip more for it. It also shows that the connection
# is alive, and how long a round trip is.
_SET_LIMITS = """
    SELECT set_config('statement_timeout', %(statement_timeout)s, false),
           set_config('lock_timeout', %(lock_timeout)s, false)
"""
# In a transaction, until its end.
_LIMIT_STATEMENT = "SELECT set_config('statement_timeout', %(statement_timeout)s, true)"


def _set(conn: ServerConnection, limits: Mapping[str, str]) -> None:
    if conn.has_our_settings:
        conn.execute(_SET_LIMITS, limits)
    else:
        set_session(conn, **limits)
        conn.has_our_settings = True


@contextmanager
def _each_awaited(conn: ServerConnection) -> Iterator[Callable[[], None]]:
    """Open a transaction; yield a function that waits for all its statements."""
    with conn.transaction():
        yield lambda: None


@contextmanager
def _pipelined(conn: ServerConnection) -> Iterator[Callable[[], None]]:
    """Open a transaction whose BEGIN and statements are sent without a wait; else as `_each_awaited`.

    The pipeline ends before the transaction: the bound of the COMMIT is for the COMMIT alone, and in a pipeline that an
    error has aborted, the server would ignore the ROLLBACK.
    """
    with ExitStack() as entering:
        entering.enter_context(conn.pipeline())
        # Not `conn.transaction()`, which would wait for the BEGIN.
        with PIPELINE_DURATION.time(), psycopg.Transaction(conn), entering.pop_all() as pipeline:
            yield pipeline.close


@contextmanager
def together(conn: Connection) -> Iterator[None]:
    """Send the statements of the block in one round trip; their results can be fetched after it.

    Args:
        conn: The connection of a transaction that is not pipelined.
    """
    with PIPELINE_DURATION.time(), conn.pipeline():
        yield
    note_answers()


class _Commit(AbstractContextManager["_Commit"]):
    """Tells a transaction that was not confirmed from one that was not made."""

    def __init__(self, conn: ServerConnection) -> None:
        self._conn = conn
        self._has_begun = False
        self._warnings_before = 0

    def begin(self) -> None:
        """COMMIT comes next."""
        self._has_begun = True
        note_statement("COMMIT")
        self._warnings_before = self._conn.warnings.count

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Refuse to call the outcome known if it is not.

        Raises:
            CommitUnconfirmed: The connection was lost during the COMMIT; or it succeeded with a warning, because the
                wait for a synchronous standby was cancelled: a failover would lose the change.
        """
        is_cancelled_wait = error is None and self._conn.warnings.count > self._warnings_before
        is_lost = isinstance(error, psycopg.OperationalError) and self._conn.closed
        if self._has_begun and (is_cancelled_wait or is_lost):
            raise CommitUnconfirmed.in_time() from error


def _abandoned() -> CallAbandoned:
    return CallAbandoned("the caller is gone; nothing was changed")


def _milliseconds(seconds: float) -> str:
    """Return a duration as PostgreSQL's settings have it; 0 would mean no limit."""
    return str(max(1, math.ceil(seconds * 1_000)))


def one(cursor: psycopg.Cursor[Row]) -> Row:
    """Return the row of a statement that always yields one.

    Raises:
        LookupError: It yielded none.
    """
    row = cursor.fetchone()
    if row is None:
        raise LookupError("a statement that always yields a row yielded none")
    return row


def current_revision(conn: Connection) -> int:
    """Return the revision that a transaction sees."""
    (revision,) = one(conn.execute("SELECT revision FROM revision_head"))
    return int(revision)
