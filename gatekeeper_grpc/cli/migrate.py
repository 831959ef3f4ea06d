"""`gatekeeper migrate`: moves the database's schema."""

import click

from gatekeeper_grpc.config import Settings
from gatekeeper_grpc.embedded import running_dsn
from gatekeeper_grpc.store.migrate import Migrator


@click.group()
def migrate() -> None:
    """Move the schema of DATABASE_URL, or of the running embedded database, up and down."""


def _migrator(settings: Settings) -> Migrator:
    url = settings.database_url
    return Migrator(url.get_secret_value() if url else running_dsn(settings.data_dir))


@migrate.command()
@click.option("--to", type=int, help="Stop at this version.  [default: the newest]")
@click.pass_obj
def up(settings: Settings, to: int | None) -> None:
    """Apply the migrations that are missing."""
    for migration in _migrator(settings).up(to):
        click.echo(f"applied {migration.label}")


@migrate.command()
@click.option("--steps", type=int, help="How many to revert.")
@click.option("--to", type=int, help="The version to go back to; 0 reverts all.")
@click.pass_obj
def down(settings: Settings, steps: int | None, to: int | None) -> None:
    """Revert migrations, newest first; what their tables hold is lost."""
    for migration in _migrator(settings).down(steps=steps, to=to):
        click.echo(f"reverted {migration.label}")


@migrate.command()
@click.pass_obj
def status(settings: Settings) -> None:
    """Say where each migration stands."""
    for migration in _migrator(settings).status():
        click.echo(f"{migration.label:<40} {migration.state}")


@migrate.command()
@click.pass_obj
def verify(settings: Settings) -> None:
    """Succeed when the schema is exactly the one this Gatekeeper needs."""
    _migrator(settings).verify()
    click.echo("the schema is the one this Gatekeeper needs")
