"""Databases as operators hand them out: other schemas, settings, encodings, rights and distances."""

import re
from itertools import count
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from tests.faults.proxy import Mode, proxied
from tests.support.database_trial import works
from tests.support.processes import KEYS, run
from tests.support.replication import Node

PASSWORD = "canary p@ss/w%rd"
_numbers = count()


class Given:
    """A database of a test's own, and a role that may use it."""

    def __init__(self, node: Node, *options: str) -> None:
        self._node = node
        self.name, self.role = f"flags_{next(_numbers)}", f"App-{next(_numbers)}"
        self.run("CREATE ROLE {} LOGIN", self.role)
        self.run(f"CREATE DATABASE {{}} {' '.join(options)} TEMPLATE template0", self.name)
        self.run("REVOKE CREATE ON SCHEMA public FROM PUBLIC", inside=True)

    def run(self, statement: str, *names: str, inside: bool = False) -> list[tuple[object, ...]]:
        """Run a statement as superuser; `inside` the database."""
        dsn = psycopg.conninfo.make_conninfo(
            self._node.dsn, client_encoding="UTF8", **({"dbname": self.name} if inside else {})
        )
        with psycopg.connect(dsn, autocommit=True) as conn:
            cursor = conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
            return cursor.fetchall() if cursor.description else []

    def url(self, *, role: str = "", port: int = 0, options: str = "", password: str = "") -> str:
        user = quote(role or self.role) + (f":{quote(password, safe='')}" if password else "")
        query = f"?options={quote(options)}" if options else ""
        return f"postgresql://{user}@127.0.0.1:{port or self._node.port}/{self.name}{query}"

    def schemas(self) -> set[object]:
        """The schemas in which there are tables or functions of anybody."""
        rows = self.run(
            "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relkind IN ('r', 'p') UNION"
            " SELECT pronamespace::regnamespace::text FROM pg_proc",
            inside=True,
        )
        return {name for (name,) in rows} - {"pg_catalog", "information_schema"}


@pytest.fixture
def given(node: Node) -> Given:
    return Given(node)


def test_a_schema_named_like_the_role_is_used(given: Given, tmp_path: Path) -> None:
    given.run("CREATE SCHEMA {} AUTHORIZATION {}", given.role, given.role, inside=True)

    works(tmp_path, given.url())

    assert given.schemas() == {f'"{given.role}"'}


def test_the_search_path_of_the_url_decides_the_schema(given: Given, tmp_path: Path) -> None:
    given.run("CREATE SCHEMA flags AUTHORIZATION {}", given.role, inside=True)

    works(tmp_path, given.url(options="-csearch_path=flags"))

    assert given.schemas() == {"flags"}


def test_no_schema_to_create_in_is_refused_before_anything_is_made(given: Given, tmp_path: Path) -> None:
    code, _, complaint = run("migrate", "up", data_dir=tmp_path, DATABASE_URL=given.url())

    assert (code, given.schemas()) == (1, set())
    assert "may not create tables in the schema public" in complaint


def test_session_settings_of_others_change_nothing(given: Given, tmp_path: Path) -> None:
    given.run("CREATE SCHEMA {} AUTHORIZATION {}", given.role, given.role, inside=True)
    for setting in (
        "DateStyle = 'German'",
        "IntervalStyle = 'sql_standard'",
        "TimeZone = 'Asia/Kolkata'",
        "bytea_output = 'escape'",
        "client_encoding = 'LATIN1'",
        "extra_float_digits = -15",
        "standard_conforming_strings = off",
        "default_transaction_isolation = 'serializable'",
        "client_min_messages = 'error'",
        "array_nulls = off",
    ):
        given.run(f"ALTER DATABASE {{}} SET {setting}", given.name)

    works(tmp_path, given.url(), PGDATESTYLE="German", PGTZ="America/St_Johns", PGCLIENTENCODING="LATIN1")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_an_encoding_that_cannot_hold_text_is_refused(node: Node, tmp_path: Path, encoding: str) -> None:
    given = Given(node, f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    for command in (("migrate", "up"), ("serve",)):
        code, _, complaints = run(*command, data_dir=tmp_path, DATABASE_URL=given.url(), **KEYS)

        assert code == 1
        assert f"has the encoding {encoding}" in complaints
        assert "ENCODING 'UTF8' TEMPLATE template0" in complaints
        assert "Traceback" not in complaints
    assert given.schemas() == set()


def test_a_role_with_the_least_privileges_serves_from_any_schema(given: Given, node: Node, tmp_path: Path) -> None:
    given.run("CREATE SCHEMA {} AUTHORIZATION {}", given.role, given.role, inside=True)
    server = f"Server {next(_numbers)}"
    given.run("CREATE ROLE {} LOGIN", server)
    path = f'-csearch_path="{given.role}"'
    serving_url = given.url(role=server, options=path)
    run("migrate", "up", data_dir=tmp_path, DATABASE_URL=given.url())
    variables = {**KEYS, "GATEKEEPER_REQUIRE_LEAST_PRIVILEGE": "true"}

    refused = run("serve", data_dir=tmp_path, DATABASE_URL=given.url(role=server), **variables)
    _, grants, _ = run("grants", "--role", server, data_dir=tmp_path)
    with psycopg.connect(given.url(), autocommit=True) as owner:
        owner.execute(grants.encode())
    works(tmp_path, serving_url, owner=given.url(), **variables)

    assert refused[0] == 1
    assert f"the database has one in the schema {given.role}" in refused[2]
    assert "public" not in re.sub(r"IF ours <> 'public'", "", grants)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "wrong canary"}, "the user name or the password is wrong"),
        ({"name": "nope\n"}, r"the database 'nope\n' does not exist"),
        ({"port": 1}, "cannot be reached"),
        ({"connect": False}, "GRANT CONNECT"),
    ],
    ids=["password", "no such database", "absent", "no right"],
)
def test_refused_absent_and_missing_are_told_apart(
    given: Given, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    _with_password(given)
    given.run("CREATE SCHEMA {} AUTHORIZATION {}", given.role, given.role, inside=True)
    if change.get("connect") is False:
        given.run("REVOKE CONNECT ON DATABASE {} FROM PUBLIC", given.name)
    given.name = str(change.get("name", given.name))
    port, password = change.get("port", 0), str(change.get("password", PASSWORD))
    assert isinstance(port, int)
    url = given.url(password=password, port=port)
    for command in (("migrate", "up"), ("serve",)):
        code, printed, complaints = run(*command, data_dir=tmp_path, DATABASE_URL=url, **KEYS)

        assert code == 1
        assert reason in complaints
        assert "Traceback" not in complaints
        assert "canary" not in printed + complaints


def test_a_database_250_ms_away_with_a_password_serves(given: Given, node: Node, tmp_path: Path) -> None:
    _with_password(given)
    given.run("CREATE SCHEMA {} AUTHORIZATION {}", given.role, given.role, inside=True)
    with proxied(node.port) as network:
        network.switch(Mode.LATENCY, latency_s=0.125)

        works(tmp_path, given.url(port=network.port, password=PASSWORD) + "?sslmode=disable&gssencmode=disable")


def _with_password(given: Given) -> None:
    given.run(f"ALTER ROLE {{}} PASSWORD '{PASSWORD}'", given.role)
    given.run("GRANT with_password TO {}", given.role)
