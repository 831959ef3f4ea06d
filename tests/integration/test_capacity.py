"""Connections that PostgreSQL has for this instance: what a start says about them."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.lifecycle.prepare_database import prepare_database
from tests.support.databases import new_database
from tests.support.servers import KEYS, settings_for_tests


@pytest.fixture
def dsn_of_role(postgres: str) -> Iterator[Callable[[int], str]]:
    """Makes a role that may have so many connections, and returns its DSN."""
    with new_database(postgres) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        role = f"app_{uuid4().hex}"

        def dsn_of(connections: int) -> str:
            create = sql.SQL("CREATE ROLE {} LOGIN CONNECTION LIMIT {}")
            conn.execute(create.format(sql.Identifier(role), sql.Literal(connections)))
            conn.execute(sql.SQL("GRANT pg_read_all_data, pg_write_all_data TO {}").format(sql.Identifier(role)))
            return make_conninfo(dsn, user=role)

        yield dsn_of
        conn.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def start(dsn: str, **settings: object) -> list[Any]:
    """What a start says of connections."""
    given = settings_for_tests(database_url=dsn, **settings)
    with capture_logs() as logs:
        prepare_database(given, dsn, KEYS, demo=False)
    return [line for line in logs if line["event"].startswith("database_connections")]


def test_a_start_says_how_many_instances_the_database_has_connections_for(postgres: str) -> None:
    with new_database(postgres) as dsn:
        (line,) = start(dsn, workers=2, db_pool_size=5)

    assert (line["event"], line["limit"], line["may_open"]) == ("database_connections", "max_connections", 20)
    assert line["instances_that_fit"] == line["for_us"] // 20 > 0


def test_a_start_warns_if_it_may_open_more_than_there_are(dsn_of_role: Callable[[int], str]) -> None:
    (line,) = start(dsn_of_role(30), workers=2, db_pool_size=20)

    assert (line["event"], line["log_level"]) == ("database_connections_short", "warning")
    assert line["reason"].startswith("this instance may open 50 connections: 25 for each of 2 workers, and of 30 there")
    assert line["remedy"] == (
        "raise CONNECTION LIMIT of the role, or lower GATEKEEPER_DB_POOL_SIZE or GATEKEEPER_WORKERS"
    )


def test_a_start_that_could_not_work_is_refused(dsn_of_role: Callable[[int], str]) -> None:
    with pytest.raises(FailedPrecondition, match=r"PostgreSQL has 8 connections for this role .* 4 workers need 12"):
        start(dsn_of_role(8), workers=4)
