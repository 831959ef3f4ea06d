"""Selects and opens the database of a command."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import click

from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.embedded import running_dsn
from gatekeeper_grpc.store.postgres.database import Database


@click.command("db-url")
@click.pass_obj
def db_url(settings: Settings) -> None:
    """Print the DSN of the running embedded database, for psql and for further instances."""
    click.echo(running_dsn(settings.data_dir))


def serving_dsn(settings: Settings) -> str:
    """Return the DSN of DATABASE_URL, or of the running embedded database."""
    url = settings.database_url
    return url.get_secret_value() if url else running_dsn(settings.data_dir)


def owner_dsn(settings: Settings) -> str:
    """Return the DSN for the role that owns the schema; the serving one if no other is set."""
    url = settings.migration_database_url
    return url.get_secret_value() if url else serving_dsn(settings)


@contextmanager
def opened(dsn: str) -> Iterator[Database]:
    """Open a small pool until the end of a `with` block."""
    with closing(Database(dsn, pool_size=2)) as database:
        database.open()
        yield database
