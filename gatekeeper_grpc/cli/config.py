"""`gatekeeper config`: prints and checks the settings."""

import click

from gatekeeper_grpc.config.settings import Settings, settings_markdown, settings_table, unknown_variables, variable_of
from gatekeeper_grpc.domain.admin_user import FIRST_ADMIN


@click.command()
@click.option("--markdown", is_flag=True, help="Print the defaults as a Markdown table.")
@click.option(
    "--check",
    is_flag=True,
    help="Only check them, the keys and the certificate; exit with 1 if one is wrong or unknown.",
)
@click.pass_obj
def config(settings: Settings, *, markdown: bool, check: bool) -> None:
    """Print every setting with its value and meaning; secrets are masked."""
    if markdown:
        click.echo(settings_markdown())
    elif check:
        _check(settings)
    else:
        for variable, value, description in settings_table(settings):
            click.echo(f"{variable}={value}\n    {description}")


def _check(settings: Settings) -> None:
    """Check what can be checked without a connection and without a change; wrong settings were refused before this."""
    # Imported here, because they take long.
    from gatekeeper_grpc.auth.certificates import CertificateFiles  # noqa: PLC0415
    from gatekeeper_grpc.auth.passwords import Passwords  # noqa: PLC0415
    from gatekeeper_grpc.lifecycle.keys import check_keys  # noqa: PLC0415

    check_keys(settings)
    if files := CertificateFiles.of(settings):
        files.read()
    if password := settings.admin_password:
        name = variable_of("admin_password")
        Passwords(cost=settings.bcrypt_cost).check(password.get_secret_value(), username=FIRST_ADMIN, field=name)
    if unknown := [name for name, _ in unknown_variables()]:
        raise click.ClickException(f"unknown: {', '.join(unknown)}")
    click.echo("the settings are valid")
