"""The serving process, alone or as supervisor or worker of a fleet: serves until a signal stops it, in bounded time."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from secrets import token_urlsafe

import structlog

from gatekeeper_grpc import draws
from gatekeeper_grpc.auth.certificates import CertificateFiles
from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.config.settings import Settings, SettingsError, variable_of
from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.fleet.port import ReservedPort
from gatekeeper_grpc.fleet.report import WorkerArgs, WorkerReport
from gatekeeper_grpc.fleet.supervisor import WorkerSupervisor
from gatekeeper_grpc.fleet.worker import Command
from gatekeeper_grpc.lifecycle.demo import Demo, read_demo
from gatekeeper_grpc.lifecycle.keys import load_keys, load_metrics_token
from gatekeeper_grpc.lifecycle.limits import (
    Limits,
    freeze_what_is_kept,
    limit_kept_memory,
    log_limits,
    raise_open_file_limit,
)
from gatekeeper_grpc.lifecycle.prepare_database import prepare_database
from gatekeeper_grpc.lifecycle.secret_watch import watch_secrets
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.lifecycle.signals import (
    exit_by_force_after,
    interrupt_at,
    next_signal,
    report_crashes,
    signal_queue,
)
from gatekeeper_grpc.lifecycle.startup import REPLACEMENT_TIMEOUTS
from gatekeeper_grpc.lifecycle.try_it import try_it
from gatekeeper_grpc.operations.logs import end_quiet, is_quiet
from gatekeeper_grpc.operations.traces import check_traces
from gatekeeper_grpc.store.postgres.capacity import CONNECTIONS_OUTSIDE_POOL
from gatekeeper_grpc.transport.listener import ListenError, try_address

_log = structlog.get_logger(__name__)

# After the drain and grace periods; then the process ends even if a call hangs.
_STOP_MARGIN_S = 1.0
_CHECK_EVERY_S = 0.02
_ANY_PRIVATE_PORT = ListenAddress(host="127.0.0.1")
# What the embedded database allows at least.
_DATABASE_CONNECTIONS = 100


def serve(settings: Settings, *, demo: bool) -> None:
    """Serve until SIGTERM or SIGINT: in this process, or in several workers that it supervises.

    Args:
        settings: What the operator decided.
        demo: Load a demo flag into an empty embedded database, and print lines to try it with.

    Raises:
        SettingsError: A setting, a key or a certificate is missing or cannot be used.
        GatekeeperError: The database is unfit, or does not answer and no snapshot is stored.
        EmbeddedDatabaseError: The embedded database cannot be started.
        ListenError: An address cannot be listened on.
        FleetError: The first worker does not start to serve.
    """
    report_crashes()
    limit_kept_memory()
    _choose_kernel(settings)
    # Until there is something to drain, SIGTERM interrupts the start, as SIGINT does; SIGHUP waits.
    signals = signal_queue(signal.SIGHUP)
    interrupt_at(signal.SIGTERM, signal.SIGINT, into=signals)
    _check_tls(settings)
    check_traces(settings)
    _try_addresses(settings)
    if settings.workers > 1:
        _serve_by_workers(settings, signals, demo=demo)
    else:
        _serve_alone(settings, signals, demo=demo)


def work(settings: Settings, args: WorkerArgs) -> None:
    """Serve as one worker of a fleet until SIGTERM or SIGINT, or until SIGHUP: then another worker has taken over.

    Raises:
        SettingsError: A setting or a key is missing or malformed.
        GatekeeperError: The database is unfit, or does not answer and no snapshot is stored.
        ListenError: An address cannot be listened on.
    """
    report_crashes()
    limit_kept_memory()
    _choose_kernel(settings)
    raise_open_file_limit()
    signals = SimpleQueue[int]()
    interrupt_at(signal.SIGTERM, signal.SIGINT, into=signals)
    args.end_with_supervisor()
    keys = load_keys(settings)
    dsn = _dsn_of_worker(settings)
    prepare = (lambda _: None) if args.is_prepared else partial(prepare_database, settings, keys=keys, demo=False)
    server = GatekeeperServer(
        settings,
        dsn=dsn,
        keys=keys,
        prepare=prepare,
        shares_port=True,
        is_embedded=args.is_prepared,
        timeouts=REPLACEMENT_TIMEOUTS if args.replaces else None,
        before_serving=freeze_what_is_kept,
    )
    server.start()
    signal_queue(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, into=signals)
    args.report(WorkerReport(ops_port=server.ops_port))
    _stop_at_signal(signals, server, settings)


def _choose_kernel(settings: Settings) -> None:
    if reason := draws.use(native=settings.kernel == "auto"):
        _log.warning("kernel_unusable", reason=reason, remedy="build it again; until then, draws are made in Python")


def _check_tls(settings: Settings) -> None:
    """Refuse a certificate that cannot be used before a database is made; warn of a listener without one."""
    if files := CertificateFiles.of(settings):
        files.read()
        return
    remedy = "set GATEKEEPER_TLS_CERT_FILE and GATEKEEPER_TLS_KEY_FILE, or let a proxy with TLS accept the calls"
    for address in settings.client_addresses.values():
        if not address.is_local:
            _log.warning("listening_without_tls", listen=str(address), remedy=remedy)


def _try_addresses(settings: Settings) -> None:
    """Find out whether the server will be able to listen, before it makes a database."""
    for field, address in settings.addresses.items():
        try:
            try_address(address)
        except ListenError as exc:
            raise ListenError(f"{variable_of(field)}: {exc}") from exc


def _serve_alone(settings: Settings, signals: SimpleQueue[int], *, demo: bool) -> None:
    keys = load_keys(settings)
    with _database(settings) as (dsn, wait_until_ready):
        raise_open_file_limit()

        def prepare(current_dsn: str) -> None:
            wait_until_ready()
            prepare_database(settings, current_dsn, keys, demo=demo)

        server = GatekeeperServer(settings, dsn=dsn, keys=keys, prepare=prepare, before_serving=freeze_what_is_kept)
        server.start()
        signal_queue(signal.SIGTERM, signal.SIGINT, into=signals)
        ports = {**server.client_ports, "health_port": server.health_port, "ops_port": server.ops_port}
        _report_serving(settings, demo=read_demo(settings, dsn, keys) if demo else None, **ports)
        _stop_at_signal(signals, server, settings, at_hangup=server.secrets.reread)


def _serve_by_workers(settings: Settings, signals: SimpleQueue[int], *, demo: bool) -> None:
    keys = load_keys(settings)
    with _reserved_ports(settings) as reserved, _database(settings) as (dsn, wait_until_ready):
        raise_open_file_limit()
        if settings.is_embedded:
            wait_until_ready()
            prepare_database(settings, dsn, keys, demo=demo)
        command = Command.like_ours(
            is_prepared=settings.is_embedded,
            **({"DATABASE_URL": dsn} if settings.is_embedded else {}),
            # The supervisor alone reads the metrics of its workers.
            GATEKEEPER_METRICS_TOKEN=token_urlsafe(),
            **{variable_of(field): str(port.address) for field, port in reserved.items()},
            GATEKEEPER_OPS_LISTEN=str(_ANY_PRIVATE_PORT),
            GATEKEEPER_OPS_TLS="false",
            **({"GATEKEEPER_LOG_LEVEL": "WARNING"} if is_quiet() else {}),
        )
        token = load_metrics_token(settings)
        supervisor = WorkerSupervisor(settings, command, token)
        secrets = watch_secrets(settings, {"metrics_token": token.use})
        try:
            supervisor.start()
            secrets.start(supervisor.scheduler)
            signal_queue(signal.SIGTERM, signal.SIGINT, into=signals)
            ports = {field.replace("listen", "port"): port.port for field, port in reserved.items()}
            ports |= {"health_port": supervisor.health_port, "ops_port": supervisor.ops_port}
            _report_serving(settings, demo=read_demo(settings, dsn, keys) if demo else None, **ports)
            _supervise(supervisor, signals)
        finally:
            exit_by_force_after(settings.drain_s + settings.grace_s + _STOP_MARGIN_S)
            secrets.close()
            supervisor.stop()


@contextmanager
def _reserved_ports(settings: Settings) -> Iterator[Mapping[str, ReservedPort]]:
    """Reserve the ports that the workers share for the length of the block; by the field of the setting."""
    with ExitStack() as stack:
        addresses = settings.client_addresses.items()
        yield {field: stack.enter_context(closing(ReservedPort(address))) for field, address in addresses}


def _supervise(supervisor: WorkerSupervisor, signals: SimpleQueue[int]) -> None:
    """Supervise the workers until SIGTERM or SIGINT; roll them at SIGHUP."""
    while True:
        supervisor.reconcile()
        try:
            number = signals.get(timeout=_CHECK_EVERY_S)
        except Empty:
            continue
        if number != signal.SIGHUP:
            _log.info("stopping", signal=signal.Signals(number).name)
            return
        supervisor.roll()


def _dsn_of_worker(settings: Settings) -> str:
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set: a worker gets it from the supervisor that starts it")
    return settings.database_url.get_secret_value()


def _report_serving(settings: Settings, *, demo: Demo | None, **ports: int) -> None:
    limits = Limits.of(settings)
    log_limits(limits)
    addresses = {name: str(address) for name, address in settings.addresses.items() if name != "ops_listen"}
    found = {name: port for name, port in ports.items() if port}  # A Unix socket has none.
    _log.info(
        "serving",
        **found,
        **addresses,
        workers=settings.workers,
        clients_mib=limits.clients_mib,
        kernel=draws.implementation(),
    )
    if demo:
        print(try_it(settings, demo, port=ports["port"], admin_port=ports.get("admin_port", 0)), flush=True)
    end_quiet()


@contextmanager
def _database(settings: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the DSN of the database of the settings, or of an embedded one, and what waits until that one is ready.

    The embedded database begins to start at once, and runs as long as the block.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value(), lambda: None
        return
    most = max(_DATABASE_CONNECTIONS, settings.workers * (settings.db_pool_size + CONNECTIONS_OUTSIDE_POOL) + 20)
    postgres_settings = {"max_connections": str(most)}
    embedded = EmbeddedPostgres(settings.data_dir, bin_dir=settings.pg_bin, settings=postgres_settings)
    embedded.begin()
    try:
        yield embedded.dsn, embedded.wait_until_ready
    finally:
        embedded.stop()


def _stop_at_signal(
    signals: SimpleQueue[int],
    server: GatekeeperServer,
    settings: Settings,
    *,
    at_hangup: Callable[[], object] | None = None,
) -> None:
    """Stop the server at a signal. `at_hangup`: what to do at SIGHUP instead."""
    announced = True
    try:
        while (number := next_signal(signals)) == signal.SIGHUP and at_hangup:
            at_hangup()
        announced = number != signal.SIGHUP
        _log.info("stopping", signal=signal.Signals(number).name)
    finally:
        exit_by_force_after(settings.drain_s * announced + settings.grace_s + _STOP_MARGIN_S)
        server.stop(announced=announced)
