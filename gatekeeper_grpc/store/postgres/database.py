"""Connections: one pool, opened once, and the two kinds of transaction that the store is made of."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import IsolationLevel
from psycopg import errors as pg
from psycopg_pool import ConnectionPool

from gatekeeper_grpc.store.postgres.caller_check import require_current_caller
from gatekeeper_grpc.store.postgres.errors import translated_errors
from gatekeeper_grpc.store.postgres.hang_watch import HangWatch
from gatekeeper_grpc.store.postgres.servers import ServerConnection, Servers

Connection = psycopg.Connection[tuple[Any, ...]]
Row = TypeVar("Row")

_ACQUIRE_TIMEOUT_S = 1.0
_MAX_WAITING = 100


class Database:
    """The pool of connections to one database. Thread-safe; `close` it when done.

    Args:
        dsn: libpq URI or keywords. Of several servers, the pool finds and follows the primary.
        pool_size: The maximum number of connections.
        statement_timeout_s: The maximum duration of a statement; with the hang watch, of a COMMIT as well.
        hung_after_s: A server that answers nothing for so long counts as hung, on a busy machine after four times as
            long: calls that wait for it fail with `Unavailable`, and new ones fail at once, until it answers again.
            None: no watch.
        for_writing: Whether, of several servers, only the primary suits.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 10,
        statement_timeout_s: float = 30.0,
        hung_after_s: float | None = None,
        for_writing: bool = True,
    ) -> None:
        self.dsn = dsn
        self._hung_after_s = hung_after_s
        self._statement_timeout_s = statement_timeout_s
        self._closing = False
        self._servers = Servers(
            dsn,
            for_writing=for_writing,
            application_name="gatekeeper",
            # Times are read in UTC whatever the server's zone is, because the audit log hashes their text.
            options=f"-c timezone=UTC -c statement_timeout={int(statement_timeout_s * 1000)}",
        )
        self._watch = HangWatch(self._servers, on_hang=self._renew)
        self._pool = ConnectionPool(
            connection_class=ServerConnection,
            kwargs={"servers": self._servers, "abandon": self._must_abandon},
            min_size=min(2, pool_size),
            max_size=pool_size,
            max_waiting=_MAX_WAITING,
            timeout=_ACQUIRE_TIMEOUT_S,
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
            Unauthenticated: The caller was demoted, disabled, deleted or given another password.
            Unavailable: No connection is free within 1 s, or the database cannot be reached or hangs.
        """
        with self._transaction(IsolationLevel.REPEATABLE_READ, read_only=True) as conn:
            require_current_caller(conn)
            yield conn

    def check_caller(self) -> None:
        """Compare the caller of the current call with the stored admin user now.

        Raises:
            Unauthenticated: As for `read`.
            Unavailable: As for `read`.
        """
        with self.read():
            pass

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a read-write transaction: committed at the end, rolled back if anything is raised.

        Raises:
            Unavailable: As for `read`.
            GatekeeperError: See `translated_errors`.
        """
        with self._transaction(IsolationLevel.READ_COMMITTED, read_only=False) as conn:
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

    def is_current(self, conn: ServerConnection) -> bool:
        """Return whether a connection leads to the server that new ones lead to; after a failover it may not."""
        return self._servers.is_current(conn)

    @contextmanager
    def _transaction(self, level: IsolationLevel, *, read_only: bool) -> Iterator[Connection]:
        with translated_errors(), self._connection() as conn:
            if conn.isolation_level is not level:
                conn.isolation_level = level
            # None sends a plain BEGIN: BEGIN READ WRITE would override the setting that fences a former primary.
            access = True if read_only else None
            if conn.read_only is not access:
                conn.read_only = access
            try:
                with conn.transaction():
                    yield conn
                    # COMMIT comes next, for which PostgreSQL has no timeout.
                    self._watch.expect_answer(conn, within_s=self._statement_timeout_s)
            except pg.ReadOnlySqlTransaction:
                if not read_only:
                    self._renew()  # The server no longer accepts writes: another one may.
                raise

    def _retry_for_waiting_requests(self, pool: ConnectionPool[ServerConnection]) -> None:
        """Make the pool try again for requests that wait already: by itself it does so only for the next one."""
        if pool.get_stats().get("requests_waiting") and not self._must_abandon():
            pool.check()

    def _must_abandon(self) -> bool:
        """Return whether connecting is pointless."""
        return self._closing or self._watch.is_hung()

    def _renew(self) -> None:
        """Discard the pool's connections: idle ones now, those in use when they are returned."""
        self._pool.drain()

    @contextmanager
    def _connection(self) -> Iterator[ServerConnection]:
        conn = self._acquire()
        try:
            with self._watch.guard(conn):
                yield conn
        finally:
            self._pool.putconn(conn)

    def _acquire(self) -> ServerConnection:
        """Take a live connection. The pool's own `check` sleeps for a second after each dead one."""
        deadline = time.monotonic() + _ACQUIRE_TIMEOUT_S
        while not self._watch.is_hung():
            conn = self._pool.getconn(timeout=max(0.0, deadline - time.monotonic()))
            if self._is_alive(conn):
                return conn
            conn.close()
            self._pool.putconn(conn)  # The pool replaces a closed one.
        raise psycopg.OperationalError("the database does not answer")

    def _is_alive(self, conn: ServerConnection) -> bool:
        """Return whether a connection works and leads to the server that new ones lead to."""
        if not self._servers.is_current(conn):
            return False
        try:
            with self._watch.guard(conn):
                ConnectionPool.check_connection(conn)
        except psycopg.OperationalError:
            return False
        return True


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
