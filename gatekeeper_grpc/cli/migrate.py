"""`gatekeeper migrate`: migrates the schema of the database."""

import click

from gatekeeper_grpc.cli.databases import owner_dsn
from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.store.migrations.runner import Migrator


@click.group()
def migrate() -> None:
    """Migrate the schema of GATEKEEPER_MIGRATION_DATABASE_URL, else DATABASE_URL, else the embedded database."""


def _migrator(settings: Settings) -> Migrator:
    return Migrator(owner_dsn(settings))


@migrate.command()
@click.option("--to", type=int, help="Stop at this version.  [default: the newest]")
@click.pass_obj
def up(settings: Settings, to: int | None) -> None:
    """Apply the missing migrations."""
    for migration in _migrator(settings).up(to):
        click.echo(f"applied {migration.label}")


@migrate.command()
@click.option("--steps", type=int, help="How many to revert. Give this or --to.")
@click.option("--to", type=int, help="The version to go back to; 0 reverts all.")
@click.pass_obj
def down(settings: Settings, steps: int | None, to: int | None) -> None:
    """Revert migrations, newest first. The data in their tables is lost."""
    for migration in _migrator(settings).down(steps=steps, to=to):
        click.echo(f"reverted {migration.label}")


@migrate.command()
@click.pass_obj
def status(settings: Settings) -> None:
    """Print the state of each migration."""
    for migration in _migrator(settings).status():
        click.echo(f"{migration.label:<40} {migration.state}")


@migrate.command()
@click.pass_obj
def verify(settings: Settings) -> None:
    """Verify that the schema is exactly the one that this Gatekeeper needs."""
    _migrator(settings).verify()
    click.echo("the schema is the one this Gatekeeper needs")
