"""A database that is away for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from gatekeeper_grpc.store.postgres.database import Connection, one
from tests.support.databases import database_name


@contextmanager
def outage(postgres: str, dsn: str) -> Iterator[None]:
    """Take a database away for the length of a block: connections are cut, nobody gets one."""
    name = database_name(dsn)
    with psycopg.connect(postgres, autocommit=True) as conn:
        close_database(name, conn)
        yield
        conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))


def close_database(name: str, conn: Connection) -> None:
    """End every session of a database, and let nobody begin one."""
    conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
    # A session that starts is not listed yet, but holds a lock on its database: this statement waits for it.
    conn.execute(sql.SQL("ALTER DATABASE {} SET TABLESPACE pg_default").format(sql.Identifier(name)))
    cut_connections(name, conn)


def cut_connections(name: str, conn: Connection) -> int:
    """End every connection to a database but `conn`, and return how many there were."""
    cut = """
        SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
        WHERE datname = %s AND pid <> pg_backend_pid()
    """
    (count,) = one(conn.execute(cut, [name]))
    return int(count)
