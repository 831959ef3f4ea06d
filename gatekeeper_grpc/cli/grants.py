"""`gatekeeper grants`: what a role needs in PostgreSQL to serve, and nothing beyond."""

import click

from gatekeeper_grpc.store.postgres.privileges import grants as grants_for


@click.command()
@click.option("--role", required=True, help="The role that serves; it exists and owns nothing.")
def grants(role: str) -> None:
    """Print the SQL that gives a role the least that `gatekeeper serve` needs.

    Run it as the owner of the schema after every `gatekeeper migrate up`, such as with psql.
    """
    click.echo(grants_for(role), nl=False)
