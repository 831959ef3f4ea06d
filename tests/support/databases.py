"""A PostgreSQL for the tests of one process, and databases on it."""

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
from psycopg import sql

from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.store.migrations.runner import Migrator

TEMPLATE = "gatekeeper_template"

# Throw-away databases need no durability; tests that kill processes start a database of their own.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a PostgreSQL whose database `TEMPLATE` is migrated; yields the DSN."""
    with (
        tempfile.TemporaryDirectory(prefix="gatekeeper-test-") as data_dir,
        EmbeddedPostgres(Path(data_dir), settings=FAST) as embedded,
    ):
        with psycopg.connect(embedded.dsn, autocommit=True) as conn:
            copy_database(conn, "template1", TEMPLATE)
        Migrator(database_dsn(embedded.dsn, TEMPLATE)).up()
        yield embedded.dsn


@contextmanager
def new_database(postgres: str, *, like: str = TEMPLATE) -> Iterator[str]:
    """Make a migrated database, or a copy of another one, for the length of the block; yields its DSN."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as conn:
        copy_database(conn, like, name)
        yield database_dsn(postgres, name)
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def empty_database(postgres: str) -> AbstractContextManager[str]:
    """Make a database without a schema for the length of the block; yields its DSN."""
    return new_database(postgres, like="template1")


def copy_database(conn: psycopg.Connection, source: str, name: str) -> None:
    """Copy a database to which nobody is connected."""
    # In memory, copies of files cost a fourth of what pages in the write-ahead log cost.
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    conn.execute(statement.format(sql.Identifier(name), sql.Identifier(source)))


def database_dsn(server_dsn: str, name: str) -> str:
    """The DSN of another database on the same PostgreSQL."""
    return psycopg.conninfo.make_conninfo(server_dsn, dbname=name)


def database_name(dsn: str) -> str:
    """The name of a DSN's database."""
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"])
