"""Connections: one pool, opened once, and the two kinds of transaction that the store is made of."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import IsolationLevel
from psycopg import errors as pg
from psycopg_pool import ConnectionPool

from gatekeeper_grpc.store.postgres.errors import translated_errors
from gatekeeper_grpc.store.postgres.hang_watch import HangWatch
from gatekeeper_grpc.store.postgres.servers import ServerConnection, Servers

Connection = psycopg.Connection[tuple[Any, ...]]
Row = TypeVar("Row")

_ACQUIRE_TIMEOUT_S = 1.0
_MAX_WAITING = 100


class Database:
    """The pool of connections to one database. Threads share it; `close` it when done.

    Args:
        dsn: libpq URI or keywords. Of several servers, the primary is found and followed.
        pool_size: The most connections held at once.
        statement_timeout_s: The longest a statement may take; when the database is watched, COMMIT too.
        hung_after_s: A server that answers nothing for so long counts as hung: whoever waits for it fails with
            `Unavailable`, and whoever asks fails at once, until it answers again. None: nobody watches.
        for_writing: Whether, of several servers, only the primary will do.
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
            # Times come back in UTC whatever the server's zone is, for the audit log hashes their text.
            options=f"-c timezone=UTC -c statement_timeout={int(statement_timeout_s * 1000)}",
        )
        self._watch = HangWatch(self._servers, on_hang=self._renew)
        self._pool = ConnectionPool(
            connection_class=ServerConnection,
            kwargs={"servers": self._servers, "abandon": self._is_of_no_use},
            min_size=min(2, pool_size),
            max_size=pool_size,
            max_waiting=_MAX_WAITING,
            timeout=_ACQUIRE_TIMEOUT_S,
            # The pool would try again after 1 s, 2 s, 4 s, ..., and be back as long after an outage as it took. Without
            # patience, whoever asks makes it try.
            reconnect_timeout=0,
            reconnect_failed=self._go_on_connecting,
            # Two: a server that does not answer must not keep the pool from connecting to another one.
            num_workers=2,
            name="gatekeeper",
            open=False,
        )

    def open(self) -> None:
        """Start connecting in the background; a database that is away is found out by the first use."""
        self._pool.open()
        if self._hung_after_s is not None:
            self._watch.start(hung_after_s=self._hung_after_s)

    def close(self) -> None:
        """Close all connections, waiting shortly for those in use."""
        self._closing = True
        self._watch.close()
        self._pool.close(timeout=2.0)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read-only transaction that sees one state of the database."""
        with self._transaction(IsolationLevel.REPEATABLE_READ, read_only=True) as conn:
            yield conn

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a read-write transaction: committed at the end, rolled back when anything is raised."""
        with self._transaction(IsolationLevel.READ_COMMITTED, read_only=False) as conn:
            yield conn

    @contextmanager
    def dedicated(self) -> Iterator[ServerConnection]:
        """Open a connection outside the pool, in autocommit, for who keeps one; `Unavailable` when it cannot be had."""
        with (
            translated_errors(),
            closing(self._servers.connect(abandon=self._is_of_no_use)) as conn,
            self._watch.guard(conn),
        ):
            yield conn

    def is_current(self, conn: ServerConnection) -> bool:
        """Whether a connection leads to the server that new ones lead to; after a failover it may be another."""
        return self._servers.is_current(conn)

    @contextmanager
    def _transaction(self, level: IsolationLevel, *, read_only: bool) -> Iterator[Connection]:
        with translated_errors(), self._connection() as conn:
            if conn.isolation_level is not level:
                conn.isolation_level = level
            # None leaves it to the server: BEGIN READ WRITE would get past the setting that fences a former primary.
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
                    self._renew()  # The server takes writes no more: some other one may.
                raise

    def _go_on_connecting(self, pool: ConnectionPool[ServerConnection]) -> None:
        """Let the pool try again for those who wait already: it does so by itself only when one more comes."""
        if pool.get_stats().get("requests_waiting") and not self._is_of_no_use():
            pool.check()

    def _is_of_no_use(self) -> bool:
        """Whether going on with connecting leads nowhere."""
        return self._closing or self._watch.is_hung()

    def _renew(self) -> None:
        """Discard the pool's connections: those at rest now, those in use when they are returned."""
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
        """Take a connection that is alive. The pool's own `check` sleeps for a second after each one that is not."""
        deadline = time.monotonic() + _ACQUIRE_TIMEOUT_S
        while not self._watch.is_hung():
            conn = self._pool.getconn(timeout=max(0.0, deadline - time.monotonic()))
            if self._is_alive(conn):
                return conn
            conn.close()
            self._pool.putconn(conn)  # which makes another
        raise psycopg.OperationalError("the database does not answer")

    def _is_alive(self, conn: ServerConnection) -> bool:
        """Whether a connection works and leads to the server that new ones lead to."""
        if not self._servers.is_current(conn):
            return False
        try:
            with self._watch.guard(conn):
                ConnectionPool.check_connection(conn)
        except psycopg.OperationalError:
            return False
        return True


def one(cursor: psycopg.Cursor[Row]) -> Row:
    """Return the row of a statement that always yields one."""
    row = cursor.fetchone()
    if row is None:
        raise LookupError("a statement that always yields a row yielded none")
    return row


def current_revision(conn: Connection) -> int:
    """Return the revision that a transaction sees."""
    (revision,) = one(conn.execute("SELECT revision FROM revision_head"))
    return int(revision)
