"""`gatekeeper migrate`: moves the database's schema."""

import click

from gatekeeper_grpc.cli.databases import owner_dsn
from gatekeeper_grpc.config import Settings
from gatekeeper_grpc.store.migrate import Migrator


@click.group()
@click.pass_context
def migrate(context: click.Context) -> None:
    """Move the schema up and down: GATEKEEPER_MIGRATION_DATABASE_URL's, DATABASE_URL's, or the embedded database's."""
    settings: Settings = context.obj
    context.obj = Migrator(owner_dsn(settings))


@migrate.command()
@click.option("--to", type=int, help="Stop at this version.  [default: the newest]")
@click.pass_obj
def up(migrator: Migrator, to: int | None) -> None:
    """Apply the migrations that are missing."""
    for migration in migrator.up(to):
        click.echo(f"applied {migration.label}")


@migrate.command()
@click.option("--steps", type=int, help="How many to revert.")
@click.option("--to", type=int, help="The version to go back to; 0 reverts all.")
@click.pass_obj
def down(migrator: Migrator, steps: int | None, to: int | None) -> None:
    """Revert migrations, newest first; what their tables hold is lost."""
    for migration in migrator.down(steps=steps, to=to):
        click.echo(f"reverted {migration.label}")


@migrate.command()
@click.pass_obj
def status(migrator: Migrator) -> None:
    """Say where each migration stands."""
    for migration in migrator.status():
        click.echo(f"{migration.label:<40} {migration.state}")


@migrate.command()
@click.pass_obj
def verify(migrator: Migrator) -> None:
    """Succeed when the schema is exactly the one this Gatekeeper needs."""
    migrator.verify()
    click.echo("the schema is the one this Gatekeeper needs")
