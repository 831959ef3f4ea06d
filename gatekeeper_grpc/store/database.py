"""Connections: one pool, opened once, and the two kinds of transaction that the store is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import IsolationLevel
from psycopg_pool import ConnectionPool

from gatekeeper_grpc.store.errors import translated_errors

Connection = psycopg.Connection[tuple[Any, ...]]

_ACQUIRE_TIMEOUT_S = 1.0
_MAX_WAITING = 100


class Database:
    """The pool of connections to one PostgreSQL. Threads share it; `close` it when done.

    Args:
        dsn: libpq URI or keywords.
        pool_size: The most connections held at once.
        statement_timeout_s: The longest a statement may take.
    """

    def __init__(self, dsn: str, *, pool_size: int = 10, statement_timeout_s: float = 30.0) -> None:
        self.dsn = dsn
        self._pool = ConnectionPool(
            dsn,
            kwargs={
                "autocommit": True,
                "application_name": "gatekeeper",
                "connect_timeout": 2,
                # Times come back in UTC whatever the server's zone is, for the audit log hashes their text.
                "options": f"-c timezone=UTC -c statement_timeout={int(statement_timeout_s * 1000)}",
            },
            min_size=min(2, pool_size),
            max_size=pool_size,
            max_waiting=_MAX_WAITING,
            timeout=_ACQUIRE_TIMEOUT_S,
            # The pool would try again after 1 s, 2 s, 4 s, ..., and be back as long after an outage as it took. Without
            # patience, whoever asks makes it try.
            reconnect_timeout=0,
            name="gatekeeper",
            open=False,
        )

    def open(self) -> None:
        """Start connecting in the background; a database that is away is found out by the first use."""
        self._pool.open()

    def close(self) -> None:
        """Close all connections, waiting shortly for those in use."""
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
    def _transaction(self, level: IsolationLevel, *, read_only: bool) -> Iterator[Connection]:
        with translated_errors(), self._connection() as conn:
            if conn.isolation_level is not level:
                conn.isolation_level = level
            if conn.read_only is not read_only:
                conn.read_only = read_only
            with conn.transaction():
                yield conn

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Take a connection that is alive. The pool's own `check` sleeps for a second after each one that is not."""
        conn = self._pool.getconn()
        while not _is_alive(conn):
            self._pool.putconn(conn)  # which discards it and makes another
            conn = self._pool.getconn()
        try:
            yield conn
        finally:
            self._pool.putconn(conn)


def _is_alive(conn: Connection) -> bool:
    try:
        ConnectionPool.check_connection(conn)
    except psycopg.OperationalError:
        return False
    return True


def one(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return the row of a statement that always yields one."""
    row = cursor.fetchone()
    if row is None:
        raise LookupError("a statement that always yields a row yielded none")
    return row


def current_revision(conn: Connection) -> int:
    """Return the revision that a transaction sees."""
    (revision,) = one(conn.execute("SELECT revision FROM revision_head"))
    return int(revision)
