"""PgBouncer between Gatekeeper and PostgreSQL, as Debian ships it."""

from itertools import count
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.database_trial import succeed, works
from tests.support.pgbouncer import pgbouncer
from tests.support.processes import KEYS, run
from tests.support.replication import ROLE, Node

_numbers = count()


@pytest.fixture
def database(node: Node) -> str:
    """The name of an empty database."""
    name = f"pooled_{next(_numbers)}"
    with psycopg.connect(node.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} ENCODING UTF8 TEMPLATE template0").format(sql.Identifier(name)))
    return name


def url(database: str, port: int) -> str:
    return f"postgresql://{ROLE}@127.0.0.1:{port}/{database}"


def test_pgbouncer_in_session_mode_serves(database: str, node: Node, tmp_path: Path) -> None:
    with pgbouncer(node, "session") as port:
        works(tmp_path, url(database, port))


@pytest.mark.parametrize(
    ("mode", "command"),
    [("transaction", ("serve",)), ("transaction", ("migrate", "up")), ("statement", ("serve",))],
    ids=["transaction", "migrate up", "statement"],
)
def test_pgbouncer_in_another_mode_is_refused_in_words(
    database: str, node: Node, tmp_path: Path, mode: str, command: tuple[str, ...]
) -> None:
    succeed("migrate", "up", folder=tmp_path, DATABASE_URL=url(database, node.port))
    with pgbouncer(node, mode) as port:
        code, _, complaints = run(*command, data_dir=tmp_path, DATABASE_URL=url(database, port), **KEYS)

    assert code == 1
    assert "pool_mode=session" in complaints
    assert "Traceback" not in complaints


def test_pgbouncer_that_refuses_startup_parameters_says_what_to_set(database: str, node: Node, tmp_path: Path) -> None:
    with pgbouncer(node, "session", ignored="search_path") as port:
        code, _, complaints = run("migrate", "up", data_dir=tmp_path, DATABASE_URL=url(database, port))

    assert code == 1
    assert "ignore_startup_parameters = options" in complaints
