"""The serving process: brings up database, schema and first admin, serves until told to stop, and stops in time."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue

import structlog

from gatekeeper_grpc.config import Settings, variable_of
from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.first_start import FIRST_ADMIN, load_keys, prepare_database
from gatekeeper_grpc.secrets_file import ADMIN_PASSWORD
from gatekeeper_grpc.server import GatekeeperServer

_log = structlog.get_logger(__name__)

# Beyond the drain and grace periods; then whatever still hangs is left behind.
_STOP_MARGIN_S = 1.0


def serve(settings: Settings, *, demo: bool) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: What the operator decided.
        demo: Load a demo flag into an empty embedded database, and print lines to try it with.

    Errors: `SettingsError`, `GatekeeperError` and `EmbeddedDatabaseError` say what keeps the process from starting.
    """
    # Until there is something to drain, SIGTERM interrupts whatever the start waits for, as SIGINT does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keys = load_keys(settings)
    with _database(settings) as dsn:
        prepare = partial(prepare_database, settings, dsn, keys, demo=demo)
        server = GatekeeperServer(settings, dsn=dsn, keys=keys, prepare=prepare)
        server.start()
        _serve_until(_stop_signals(), server, settings, demo=demo)


def _stop_signals() -> SimpleQueue[int]:
    """Return a queue that gets each SIGTERM and SIGINT.

    A SimpleQueue, because a handler may put into it while the main thread waits on it; an Event would deadlock.
    """
    signals: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: signals.put(received))
    return signals


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """Provide the database: the one that the settings name, or the embedded one for as long as the block runs."""
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with EmbeddedPostgres(settings.data_dir, bin_dir=settings.pg_bin) as embedded:
        yield embedded.dsn


def _serve_until(stop: SimpleQueue[int], server: GatekeeperServer, settings: Settings, *, demo: bool) -> None:
    try:
        if demo:
            print(try_it(settings, port=server.port), flush=True)
        _log.info("stopping", signal=signal.Signals(_next(stop)).name)
    finally:
        _exit_by_force(settings.drain_s + settings.grace_s + _STOP_MARGIN_S)
        server.stop()


def _next(signals: SimpleQueue[int]) -> int:
    """Wait for a signal. With a timeout: one that the kernel hands to another thread does not wake the main thread."""
    while True:
        try:
            return signals.get(timeout=0.2)
        except Empty:
            continue


def _exit_by_force(deadline_s: float) -> None:
    """End the process at the deadline: a handler that hangs would keep it for ever."""

    def end() -> None:
        _log.error("stopped_by_force", deadline_s=deadline_s)
        sys.stderr.flush()
        os._exit(70)

    timer = threading.Timer(deadline_s, end)
    timer.daemon = True
    timer.start()


def try_it(settings: Settings, *, port: int) -> str:
    """Return lines to paste into a shell: evaluate, log in, change the rollout."""
    address = f"{settings.listen.rpartition(':')[0]}:{port}"
    curl = "buf curl --protocol grpc --http2-prior-knowledge"
    call = f"http://{address}/gatekeeper.v1"
    alice = """'{"context":{"user_id":"alice"}}'"""
    login = f"""'{{"username":"{FIRST_ADMIN}","password":"'"{_admin_password(settings)}"'"}}'"""
    to_token = r"""tr -d ' \n' | sed 's/.*"accessToken":"\([^"]*\)".*/\1/'"""  # noqa: S105 - a shell filter
    update = """'{"flag":{"key":"new_checkout","rolloutPercentage":50},"updateMask":"rolloutPercentage"}'"""
    return f"""Serving on {address}. Paste to try it (.venv/bin/buf is installed by `make install`):

# Evaluate all flags for a user
{curl} -d {alice} {call}.EvaluationService/EvaluateFlags
grpcurl -plaintext -d {alice} {address} gatekeeper.v1.EvaluationService/EvaluateFlags
# Log in
TOKEN=$({curl} -d {login} {call}.AuthService/Login | {to_token})
# Change the rollout
{curl} -H "authorization: Bearer $TOKEN" -d {update} {call}.AdminService/UpdateFlag
"""


def _admin_password(settings: Settings) -> str:
    """Return what a shell expands, between double quotes, to the first admin's password."""
    kept = settings.data_dir.absolute() / ADMIN_PASSWORD
    return f"$(cat {shlex.quote(str(kept))})" if kept.exists() else f"${variable_of('admin_password')}"
