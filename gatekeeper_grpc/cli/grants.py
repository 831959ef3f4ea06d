"""`gatekeeper grants`: the least privileges with which a PostgreSQL role can serve."""

import click

from gatekeeper_grpc.store.postgres.privileges import grants as grants_for


@click.command()
@click.option("--role", required=True, help="The role that serves. It must exist and own nothing.")
def grants(role: str) -> None:
    """Print the SQL that grants a role the least privileges for `gatekeeper serve`.

    Run it as the owner of the schema, for example with psql, after every `gatekeeper migrate up`.
    """
    click.echo(grants_for(role), nl=False)
