"""A durable PostgreSQL to stop, kill and hang, and networks to it that can be broken."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psycopg

from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.embedded.home import Home
from gatekeeper_grpc.embedded.sockets import PORT
from gatekeeper_grpc.store.migrations.runner import Migrator
from tests.faults.fleet import Route
from tests.faults.proxy import proxied
from tests.support.processes import hanging, kill_postmaster, postgres_pids
from tests.support.servers import access_token, token_for

_ADMIN = Role.ADMIN
# The proxy leads to a Unix socket, where there is nothing to negotiate.
_PLAIN = "?sslmode=disable&gssencmode=disable"


# In the place of PostgreSQL's own.
_LOSSY_NOTIFY = """
    CREATE SCHEMA lossy;
    CREATE TABLE lossy.notify (share float8);
    INSERT INTO lossy.notify VALUES (0);
    ALTER FUNCTION pg_catalog.pg_notify(text, text) RENAME TO pg_notify_all;
    CREATE FUNCTION pg_catalog.pg_notify(channel text, payload text) RETURNS void LANGUAGE sql VOLATILE AS $$
        SELECT pg_notify_all(channel, payload) FROM lossy.notify WHERE random() >= share
    $$
"""


class Postgres:
    """A PostgreSQL with a data directory of its own, started again at once whenever it dies. Keyword: its settings."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self._home = Home(data_dir)
        self._embedded = EmbeddedPostgres(data_dir, settings=settings)

    @property
    def dsn(self) -> str:
        """The straight way to it, which changes when it is stopped and started."""
        return self._embedded.dsn

    def start(self) -> None:
        """Start; returns when it takes connections."""
        self._embedded.start()

    def stop(self) -> None:
        """Stop; nobody starts it again but `start`."""
        self._embedded.stop()

    def kill(self) -> None:
        """End it without any notice; it is started again at once. Does nothing while it is not up again."""
        with suppress(ProcessLookupError, FileNotFoundError):
            kill_postmaster(self._home.data_dir)

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def lose_notifications(self, share: float) -> None:
        """Let PostgreSQL lose this share of the announcements of connections made from now on: 0 to 1."""
        with psycopg.connect(self.dsn) as conn:
            conn.execute(_LOSSY_NOTIFY)
            conn.execute("UPDATE lossy.notify SET share = %s", (share,))

    def hanging(self) -> AbstractContextManager[None]:
        """Let all its processes hang for the length of the block."""
        return hanging(lambda: postgres_pids(self._home.data_dir))

    @contextmanager
    def route(self) -> Iterator[Route]:
        """Make another way to it, with a network of its own."""
        with proxied(self._home.socket_link / f".s.PGSQL.{PORT}") as network:
            yield Route(f"postgresql://gatekeeper@127.0.0.1:{network.port}/gatekeeper{_PLAIN}", network)

    def token(self) -> str:
        """An access token of the admin user that `prepare` made."""
        return access_token(self.dsn, _ADMIN.name.lower())


@contextmanager
def running(data_dir: Path, **settings: str) -> Iterator[Postgres]:
    """Run PostgreSQL on a data directory for the length of the block."""
    postgres = Postgres(data_dir, **settings)
    postgres.start()
    try:
        yield postgres
    finally:
        postgres.stop()


def prepare(data_dir: Path) -> Path:
    """Make a data directory with a migrated database and an admin user in it; to be copied, for nobody runs it."""
    with running(data_dir, fsync="off") as postgres:
        Migrator(postgres.dsn).up()
        token_for(postgres.dsn, _ADMIN)
    return data_dir
