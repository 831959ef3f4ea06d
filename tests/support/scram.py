"""A PostgreSQL that asks one role for a password, and files that are replaced as a kubelet replaces them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.embedded.home import Home
from gatekeeper_grpc.store.migrations.runner import Migrator
from tests.support.databases import FAST

ROLE = "serving"
_ACCESS = f"local all {ROLE} scram-sha-256\nlocal all all trust\n"


@dataclass(frozen=True, kw_only=True)
class PasswordDatabase:
    """A migrated database whose role `ROLE` needs its password."""

    owner_dsn: str

    def dsn(self, password: str) -> str:
        """The DSN of the role."""
        return make_conninfo(self.owner_dsn, user=ROLE, password=password)

    def set_password(self, password: str) -> None:
        """Give the role another password."""
        self._execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(ROLE), sql.Literal(password)))

    def end_sessions(self) -> None:
        """End all sessions of the role, so that new ones need the password."""
        self._execute(
            sql.SQL("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = {}").format(
                sql.Literal(ROLE)
            )
        )

    def sessions(self) -> set[int]:
        """The sessions of the role."""
        with psycopg.connect(self.owner_dsn, autocommit=True) as conn:
            return {pid for (pid,) in conn.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", [ROLE])}

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.owner_dsn, autocommit=True) as conn:
            conn.execute(statement)


@contextmanager
def password_database(data_dir: Path, password: str) -> Iterator[PasswordDatabase]:
    """Run it for the length of the block."""
    with EmbeddedPostgres(data_dir, settings=FAST) as embedded:
        Migrator(embedded.dsn).up()
        (Home(data_dir).cluster / "pg_hba.conf").write_text(_ACCESS)
        database = PasswordDatabase(owner_dsn=embedded.dsn)
        with psycopg.connect(embedded.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN").format(sql.Identifier(ROLE)))
            conn.execute("SELECT pg_reload_conf()")
        database.set_password(password)
        yield database


def replace(path: Path, content: str) -> Path:
    """Replace a file atomically."""
    new = path.with_name(f".{path.name}")
    new.write_text(f"{content}\n")
    return new.replace(path)
