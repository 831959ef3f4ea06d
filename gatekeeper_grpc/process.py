"""The serving process: brings up database, schema and first admin, serves until told to stop, and stops in time."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import structlog

from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.auth.passwords import Passwords, generate_password
from gatekeeper_grpc.config import Settings, SettingsError, variable_of
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.secrets_file import (
    ADMIN_PASSWORD,
    JWT_KEYS,
    keep_secret,
    kept_secret,
    new_jwt_keys,
    read_secret,
)
from gatekeeper_grpc.server import GatekeeperServer
from gatekeeper_grpc.store.migrate import Migrator

_log = structlog.get_logger(__name__)

FIRST_ADMIN = "admin"
DEMO_FLAG = FlagConfig(
    key="new_checkout", description="A demo flag: change its rollout.", enabled=True, rollout_percentage=30
)
# Beyond the drain and grace periods; then whatever still hangs is left behind.
_STOP_MARGIN_S = 5.0


def serve(settings: Settings, *, demo: bool) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: What the operator decided.
        demo: Load a demo flag into an empty embedded database, and print lines to try it with.

    Errors: `SettingsError`, `GatekeeperError` and `EmbeddedDatabaseError` say what keeps the process from starting.
    """
    stop = _stop_signals()
    keys = _key_ring(settings)
    with _database(settings) as dsn:
        _prepare_schema(settings, dsn)
        server = GatekeeperServer(settings, dsn=dsn, keys=keys)
        _serve_until(stop, server, settings, demo=demo)


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


def _prepare_schema(settings: Settings, dsn: str) -> None:
    """Migrate the embedded database; demand that any other one is migrated already."""
    migrator = Migrator(dsn)
    if settings.is_embedded:
        migrator.up()
    else:
        migrator.verify()


def _serve_until(stop: SimpleQueue[int], server: GatekeeperServer, settings: Settings, *, demo: bool) -> None:
    server.start()
    try:
        _ensure_first_admin(server, settings)
        if demo:
            _load_demo(server, settings)
            print(try_it(settings, port=server.port), flush=True)
        _log.info("stopping", signal=signal.Signals(stop.get()).name)
    finally:
        _exit_by_force(settings.drain_s + settings.grace_s + _STOP_MARGIN_S)
        server.stop()


def _exit_by_force(deadline_s: float) -> None:
    """End the process at the deadline: a handler that hangs would keep it for ever."""

    def end() -> None:
        _log.error("stopped_by_force", deadline_s=deadline_s)
        sys.stderr.flush()
        os._exit(70)

    timer = threading.Timer(deadline_s, end)
    timer.daemon = True
    timer.start()


def _key_ring(settings: Settings) -> KeyRing:
    """Return the keys that sign tokens: the operator's, those kept in the data directory, or, embedded, new ones."""
    variable = variable_of("jwt_keys")
    if settings.jwt_keys is not None:
        text: str | None = settings.jwt_keys.get_secret_value()
    elif settings.is_embedded:
        text = kept_secret(settings.data_dir, JWT_KEYS, new_jwt_keys)
    else:
        text = read_secret(settings.data_dir, JWT_KEYS)
    if text is None:
        raise SettingsError(
            f"{variable} is not set: every instance on this database needs the same keys, kid:secret[,...]"
        )
    try:
        return KeyRing.parse(text)
    except ValueError as exc:
        raise SettingsError(f"{variable}: {exc}") from None


def _ensure_first_admin(server: GatekeeperServer, settings: Settings) -> None:
    """Make the admin user `admin` when there is no admin user; print a generated password once."""
    if server.logins.has_admin():
        return
    if settings.admin_password is not None:
        password = settings.admin_password.get_secret_value()
    elif settings.is_embedded:
        password = generate_password()
        keep_secret(settings.data_dir, ADMIN_PASSWORD, password)
    else:
        _log.warning("no_admin_user", remedy=f"set {variable_of('admin_password')} and restart")
        return
    password_hash = Passwords(cost=settings.bcrypt_cost).hash(password)
    if server.logins.ensure_first_admin(FIRST_ADMIN, password_hash) and settings.admin_password is None:
        print(f"First admin user: {FIRST_ADMIN}, password {password}")
        print(f"(kept in {settings.data_dir / ADMIN_PASSWORD}, not shown again)\n", flush=True)


def _load_demo(server: GatekeeperServer, settings: Settings) -> None:
    if settings.is_embedded and server.cache.current().revision == 0:
        reason = "a flag to try Gatekeeper with"
        written = server.flags.create(DEMO_FLAG, Intent(caller=None, action="CreateFlag", change_reason=reason))
        server.cache.wait_for_revision(written.revision, timeout_s=1.0)


def try_it(settings: Settings, *, port: int) -> str:
    """Return lines to paste into a shell: evaluate, log in, change the rollout."""
    address = f"{settings.listen.rpartition(':')[0]}:{port}"
    curl = "buf curl --protocol grpc --http2-prior-knowledge"
    call = f"http://{address}/gatekeeper.v1"
    alice = """'{"context":{"user_id":"alice"}}'"""
    password = settings.data_dir / ADMIN_PASSWORD
    login = f"""'{{"username":"{FIRST_ADMIN}","password":"'$(cat {password})'"}}'"""
    read_token = r"""tr -d ' \n' | sed 's/.*"accessToken":"\([^"]*\)".*/\1/'"""
    update = """'{"flag":{"key":"new_checkout","rolloutPercentage":50},"updateMask":"rolloutPercentage"}'"""
    return f"""Serving on {address}. Paste to try it (.venv/bin/buf is installed by `make install`):

# Evaluate all flags for a user
{curl} -d {alice} {call}.EvaluationService/EvaluateFlags
grpcurl -plaintext -d {alice} {address} gatekeeper.v1.EvaluationService/EvaluateFlags
# Log in
TOKEN=$({curl} -d {login} {call}.AuthService/Login | {read_token})
# Change the rollout
{curl} -H "authorization: Bearer $TOKEN" -d {update} {call}.AdminService/UpdateFlag
"""
