"""Fixtures of all tests: a real PostgreSQL, a database for each test, a real server on a real socket."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, settings
from structlog.dev import ConsoleRenderer, plain_traceback

from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.postgres.database import Database
from tests.support.databases import new_database, running_postgres
from tests.support.run_directory import hold, make_run_directory
from tests.support.servers import KEYS, StartServer, connect, settings_for_tests, token_for

_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 4 * 1024**3

# A busy machine is slow, and no test asserts a time.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure() -> None:
    """Keep temporary files in memory if it has room: a run makes and deletes some 300,000 files of databases."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        hold(Path(tempfile.gettempdir()))
        return
    in_memory = not os.environ.get("TMPDIR") and _has_room(_MEMORY)
    parent = _MEMORY if in_memory else Path(tempfile.gettempdir())
    os.environ["TMPDIR"] = tempfile.tempdir = str(make_run_directory(parent))


def _has_room(directory: Path) -> bool:
    try:
        found = os.statvfs(directory)
    except FileNotFoundError:
        return False
    # Some tests write programs and run them.
    return found.f_bavail * found.f_frsize >= _ENOUGH_BYTES and not found.f_flag & os.ST_NOEXEC


def pytest_xdist_auto_num_workers() -> int:
    """Return what `-n auto` means: two processes for each core, because many tests wait more than they compute."""
    return 2 * len(os.sched_getaffinity(0))


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Remove the developer's own settings, so that no test depends on them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [
            name for name in os.environ if name.startswith(("GATEKEEPER_", "OTEL_")) or name.endswith("DATABASE_URL")
        ]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Take back what commands in this process have set for processes that they are not, such as GRPC_VERBOSITY."""
    before = dict(os.environ)
    yield
    if before.keys() != os.environ.keys():
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """Log exceptions as Python prints them: structlog's frames with all variables cost 0.2 s each."""
    ConsoleRenderer.get_active().exception_formatter = plain_traceback


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of a PostgreSQL, one for each test process, whose template database is migrated."""
    with running_postgres() as dsn:
        yield dsn


@pytest.fixture
def dsn(postgres: str) -> Iterator[str]:
    """The DSN of a migrated database that this test has to itself."""
    with new_database(postgres) as dsn:
        yield dsn


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    """An open pool on this test's database."""
    database = Database(dsn)
    database.open()
    yield database
    database.close()


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
