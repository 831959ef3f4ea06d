"""`gatekeeper serve`, and the worker processes that it starts."""

import os
import sys
from typing import Any

import click

from gatekeeper_grpc.config.settings import Settings, SettingsError
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.operations.logs import begin_quiet, configure_logs
from gatekeeper_grpc.transport.core import CORE_LOG, refuse_tls_1_2


@click.command()
@click.option(
    "--demo", is_flag=True, help="Load a demo flag into an empty embedded database and print lines to try it with."
)
@click.pass_obj
def serve(settings: Settings, *, demo: bool) -> None:
    """Serve until SIGTERM. Without DATABASE_URL, start an embedded PostgreSQL."""
    if demo and _is_read_by_a_person(settings):
        begin_quiet()
        if not settings.has_tls:
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's core writes lines of its own.
    _prepare_core(settings)
    # Imported here, because gRPC's core reads the environment then.
    from gatekeeper_grpc.fleet.supervisor import FleetError  # noqa: PLC0415
    from gatekeeper_grpc.lifecycle.process import serve as serve_until_stopped  # noqa: PLC0415
    from gatekeeper_grpc.transport.listener import ListenError  # noqa: PLC0415

    try:
        serve_until_stopped(settings, demo=demo)
    except (ListenError, FleetError) as exc:
        raise click.ClickException(str(exc)) from None


@click.command(hidden=True)
@click.option("--number", type=int, required=True)
@click.option("--report-to", type=int, required=True)
@click.option("--supervisor", type=int, required=True)
@click.option("--prepared", "is_prepared", is_flag=True)
@click.option("--replaces", is_flag=True)
@click.pass_obj
def worker(settings: Settings, /, *, number: int, **args_of_supervisor: Any) -> None:
    """Serve as one of GATEKEEPER_WORKERS. `serve` starts these processes."""
    configure_logs(level=settings.log_level, log_format=settings.log_format, worker=number)
    _prepare_core(settings)
    from gatekeeper_grpc.fleet.report import WorkerArgs, WorkerReport  # noqa: PLC0415
    from gatekeeper_grpc.lifecycle.process import work  # noqa: PLC0415
    from gatekeeper_grpc.transport.listener import ListenError  # noqa: PLC0415

    args = WorkerArgs(number=number, **args_of_supervisor)
    try:
        work(settings, args)
    except (ListenError, SettingsError, GatekeeperError) as exc:
        args.report(WorkerReport(error=str(exc)))
        raise click.exceptions.Exit(1) from None


def _prepare_core(settings: Settings) -> None:
    """Have gRPC's core, which is not imported yet, speak and write what is wanted with TLS."""
    if settings.has_tls:
        CORE_LOG.start()
        if settings.tls_min_version == "1.3":
            refuse_tls_1_2()


def _is_read_by_a_person(settings: Settings) -> bool:
    """Whether the output goes to a terminal, and nobody has asked for logs there."""
    asked = settings.model_fields_set & {"log_level", "log_format"}
    return sys.stdout.isatty() and sys.stderr.isatty() and not asked
