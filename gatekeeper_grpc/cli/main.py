"""The `gatekeeper` command."""

import sys

import click

from gatekeeper_grpc.cli.audit import audit
from gatekeeper_grpc.cli.grants import grants
from gatekeeper_grpc.cli.keys import data_keys
from gatekeeper_grpc.cli.migrate import migrate
from gatekeeper_grpc.cli.restore import erasure_commands, restore_finish
from gatekeeper_grpc.config import Settings, SettingsError, load_settings, settings_markdown, settings_table
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.embedded import EmbeddedDatabaseError, running_dsn
from gatekeeper_grpc.lifecycle.connection_urls import check_urls
from gatekeeper_grpc.lifecycle.signals import exit_now
from gatekeeper_grpc.operations.logs import configure_logs


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gatekeeper-grpc")
@click.pass_context
def gatekeeper(context: click.Context) -> None:
    """Gatekeeper, the self-hosted feature-flag service. Settings come from the environment: see `gatekeeper config`."""
    settings = load_settings()
    check_urls(settings)
    configure_logs(level=settings.log_level, log_format=settings.log_format)
    context.obj = settings


@gatekeeper.command()
@click.option(
    "--demo", is_flag=True, help="Load a demo flag into an empty embedded database and print lines to try it with."
)
@click.pass_obj
def serve(settings: Settings, *, demo: bool) -> None:
    """Serve until SIGTERM. Without DATABASE_URL, start an embedded PostgreSQL."""
    # Imported here: grpcio takes a quarter of a second to import, and no other command needs it.
    from gatekeeper_grpc.fleet.supervisor import FleetError  # noqa: PLC0415
    from gatekeeper_grpc.lifecycle.process import serve as serve_until_stopped  # noqa: PLC0415
    from gatekeeper_grpc.transport.listener import ListenError  # noqa: PLC0415

    try:
        serve_until_stopped(settings, demo=demo)
    except (ListenError, FleetError) as exc:
        raise click.ClickException(str(exc)) from None


@gatekeeper.command(hidden=True)
@click.option("--number", type=int, required=True)
@click.option("--report-to", type=int, required=True)
@click.option("--supervisor", type=int, required=True)
@click.option("--prepared", is_flag=True)
@click.pass_obj
def worker(settings: Settings, *, number: int, report_to: int, supervisor: int, prepared: bool) -> None:
    """Serve as one of GATEKEEPER_WORKERS. `serve` starts these processes."""
    from gatekeeper_grpc.fleet.report import WorkerArgs, WorkerReport  # noqa: PLC0415
    from gatekeeper_grpc.lifecycle.process import work  # noqa: PLC0415
    from gatekeeper_grpc.transport.listener import ListenError  # noqa: PLC0415

    configure_logs(level=settings.log_level, log_format=settings.log_format, worker=number)
    args = WorkerArgs(number=number, report_to=report_to, supervisor=supervisor, is_prepared=prepared)
    try:
        work(settings, args)
    except (ListenError, SettingsError, GatekeeperError) as exc:
        args.report(WorkerReport(error=str(exc)))
        raise click.exceptions.Exit(1) from None


@gatekeeper.command("db-url")
@click.pass_obj
def db_url(settings: Settings) -> None:
    """Print the DSN of the running embedded database, for psql and for further instances."""
    click.echo(running_dsn(settings.data_dir))


@gatekeeper.command()
@click.option("--markdown", is_flag=True, help="Print the defaults as a Markdown table.")
@click.pass_obj
def config(settings: Settings, *, markdown: bool) -> None:
    """Print every setting with its value and meaning; secrets are masked."""
    if markdown:
        click.echo(settings_markdown())
        return
    for variable, value, description in settings_table(settings):
        click.echo(f"{variable}={value}\n    {description}")


gatekeeper.add_command(migrate)
gatekeeper.add_command(restore_finish)
gatekeeper.add_command(erasure_commands)
gatekeeper.add_command(audit)
gatekeeper.add_command(grants)
gatekeeper.add_command(data_keys)


def main() -> None:
    """Run the command, and end the process without the interpreter's finalization: gRPC's threads may still run."""
    exit_now(run())


def run() -> int:
    """Run the command; return its exit code. An expected failure is one line on standard error and exit code 1."""
    try:
        return gatekeeper.main(standalone_mode=False) or 0
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (SettingsError, GatekeeperError, EmbeddedDatabaseError) as exc:
        click.echo(f"gatekeeper: {exc}", err=True)
        return 1
    except (click.Abort, KeyboardInterrupt):  # KeyboardInterrupt: a second signal while the first one was handled
        return 130
    except Exception as exc:  # noqa: BLE001 - a bug: reported as the interpreter does it
        sys.excepthook(type(exc), exc, exc.__traceback__)
        return 1
