"""`gatekeeper migrate`: moves the database's schema."""

import click

from gatekeeper_grpc.cli.databases import owner_dsn
from gatekeeper_grpc.config import Settings
from gatekeeper_grpc.store.migrations.runner import Migrator


@click.group()
def migrate() -> None:
    """Move the schema up and down: GATEKEEPER_MIGRATION_DATABASE_URL's, DATABASE_URL's, or the embedded database's."""


def _migrator(settings: Settings) -> Migrator:
    return Migrator(owner_dsn(settings))


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
