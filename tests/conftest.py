"""What tests stand on: a real PostgreSQL, a database of its own for each test, a real server on a real socket."""

import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from psycopg import sql

from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.auth.tokens import AccessTokens
from gatekeeper_grpc.config import Settings, load_settings
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.lifecycle.keys import Keys
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.postgres.database import Database

TEMPLATE = "gatekeeper_template"
KEYS = Keys(
    tokens=KeyRing.parse("test:0123456789abcdef0123456789abcdef"),
    data=DataKeys(KeyRing.parse("data:fedcba9876543210fedcba9876543210")),
    erasure=b"0f1e2d3c4b5a69780f1e2d3c4b5a6978",
)
# Throw-away databases need no durability; tests that kill processes start a database of their own.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
# Where servers of this process keep what is not in the database.
SCRATCH = tempfile.TemporaryDirectory(prefix="gatekeeper-test-")

_numbers = count()


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Settings of whoever runs the tests must not reach them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GATEKEEPER_") or name.endswith("DATABASE_URL")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of a PostgreSQL, one for each test process, whose template database is migrated."""
    with (
        tempfile.TemporaryDirectory(prefix="gatekeeper-test-") as data_dir,
        EmbeddedPostgres(Path(data_dir), settings=FAST) as embedded,
    ):
        with psycopg.connect(embedded.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        Migrator(database_dsn(embedded.dsn, TEMPLATE)).up()
        yield embedded.dsn


@pytest.fixture
def dsn(postgres: str) -> Iterator[str]:
    """The DSN of a migrated database that this test has to itself."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(TEMPLATE)))
        yield database_dsn(postgres, name)
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    """An open pool on this test's database."""
    database = Database(dsn)
    database.open()
    yield database
    database.close()


StartServer = Callable[..., GatekeeperServer]


@pytest.fixture
def start_server(dsn: str) -> Iterator[StartServer]:
    """Starts servers on this test's database, with free ports; keyword arguments are settings."""
    started: list[GatekeeperServer] = []

    def start(**settings: object) -> GatekeeperServer:
        server = GatekeeperServer(settings_for_tests(**settings), dsn=dsn, keys=KEYS)
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def server(start_server: StartServer) -> GatekeeperServer:
    """A running server."""
    return start_server()


@pytest.fixture
def channel(server: GatekeeperServer) -> Iterator[grpc.Channel]:
    """A channel to `server`, without credentials."""
    with connect(server) as channel:
        yield channel


@pytest.fixture
def evaluation(channel: grpc.Channel) -> EvaluationServiceStub:
    """A client of EvaluationService."""
    return EvaluationServiceStub(channel)


@pytest.fixture
def auth(channel: grpc.Channel) -> AuthServiceStub:
    """A client of AuthService."""
    return AuthServiceStub(channel)


@pytest.fixture
def admin(server: GatekeeperServer, dsn: str) -> Iterator[AdminServiceStub]:
    """A client of AdminService whose calls carry the token of an editor."""
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        yield AdminServiceStub(channel)


def settings_for_tests(**settings: object) -> Settings:
    """Settings with free ports, and without waits that serve no test."""
    quick = {
        "data_dir": SCRATCH.name,
        # Not to be shared: what one test leaves there says nothing about another test's database.
        "snapshot_file": Path(SCRATCH.name) / f"snapshot-{next(_numbers)}",
        "listen": "127.0.0.1:0",
        "health_listen": "127.0.0.1:0",
        "ops_listen": "127.0.0.1:0",
        "drain_s": 0,
        "grace_s": 1,
        "bcrypt_cost": 10,
    }
    return load_settings(**{**quick, **settings})


def database_dsn(server_dsn: str, name: str) -> str:
    """The DSN of another database on the same PostgreSQL."""
    return psycopg.conninfo.make_conninfo(server_dsn, dbname=name)


def connect(server: GatekeeperServer, *, token: str = "") -> grpc.Channel:
    """Open a channel of its own to a server; with a token, every call carries it."""
    channel = grpc.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.use_local_subchannel_pool", 1)])
    return grpc.intercept_channel(channel, Bearer(token)) if token else channel


def token_for(dsn: str, role: Role) -> str:
    """Make an admin user with this role, named after it, and an access token for it."""
    name = role.name.lower()
    insert = """
        INSERT INTO admin_user (username, password_hash, role, create_time, update_time)
        VALUES (%s, 'x', %s, now(), now())
    """
    with psycopg.connect(dsn) as conn:
        conn.execute(insert, (name, name))
    return access_token(dsn, name)


def access_token(dsn: str, username: str) -> str:
    """Make an access token for an admin user as it stands now."""
    find = "SELECT admin_id, upper(role), token_epoch FROM admin_user WHERE username = %s"
    with psycopg.connect(dsn) as conn:
        ((admin_id, role, token_epoch),) = conn.execute(find, (username,))
    caller = Caller(admin_id=admin_id, username=username, role=Role[role], token_epoch=token_epoch)
    return AccessTokens(KEYS.tokens).issue(caller).text


class Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Puts an access token on every call."""

    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    def _authorized(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=(*(details.metadata or ()), *self._metadata)), request)

    intercept_unary_unary = _authorized  # type: ignore[assignment]
    intercept_stream_unary = _authorized  # type: ignore[assignment]
    intercept_unary_stream = _authorized  # type: ignore[assignment]
    intercept_stream_stream = _authorized  # type: ignore[assignment]
