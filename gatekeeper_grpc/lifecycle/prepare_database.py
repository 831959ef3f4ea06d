"""Prepares the database before anything is served: schema, privileges, first admin user, demo flag."""

from contextlib import closing

import structlog

from gatekeeper_grpc.auth.passwords import Passwords, generate_password
from gatekeeper_grpc.config.program import with_program
from gatekeeper_grpc.config.settings import Settings, variable_of
from gatekeeper_grpc.domain.admin_user import FIRST_ADMIN
from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.lifecycle.demo import load_demo
from gatekeeper_grpc.lifecycle.key_needs import missing_data_keys
from gatekeeper_grpc.lifecycle.keys import Keys, erasure_ledger, ledger_path
from gatekeeper_grpc.lifecycle.secrets_file import ADMIN_PASSWORD, store_secret
from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.postgres.capacity import CONNECTIONS_OUTSIDE_POOL, LEAST_CONNECTIONS, capacity_of
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.privileges import rewriting_powers

_log = structlog.get_logger(__name__)

# A start does not wait longer for a connection; it tries again.
_CONNECT_TIMEOUT_S = 2


def prepare_database(settings: Settings, dsn: str, keys: Keys, *, demo: bool) -> None:
    """Make a database fit to serve from.

    An embedded database is migrated; any other must have the current schema. The first admin user is created if there
    is none. With `demo`, an empty embedded database gets a flag.

    Raises:
        Unavailable: The database does not answer.
        FailedPrecondition: The schema is another one; the role can rewrite the audit log and must not; a pooler gives
            each transaction another session; or there are too few connections to work with.
        InvalidArgument: The password of the first admin user is not acceptable.
    """
    migrator = Migrator(dsn, connect_timeout_s=_CONNECT_TIMEOUT_S)
    if settings.is_embedded:
        migrator.up()
    else:
        migrator.verify()
    with closing(Database(dsn, pool_size=2, hung_after_s=settings.db_hung_after_s)) as database:
        database.open()
        _check_privileges(database, settings)
        _check_capacity(database, settings)
        _check_ledger(settings)
        _report_missing_keys(database, settings, keys)
        _ensure_first_admin(LoginStore(database), settings)
        if demo and settings.is_embedded:
            load_demo(database, keys)


def _check_privileges(database: Database, settings: Settings) -> None:
    """Warn, or refuse, if the serving role can rewrite the audit log. In an embedded database it always can."""
    powers = rewriting_powers(database)
    if powers and settings.require_least_privilege:
        raise FailedPrecondition(
            f"the database role can rewrite the audit log: {'; '.join(powers)}. Serve with a role that owns nothing"
            f" (`gatekeeper grants --help`), or unset {variable_of('require_least_privilege')}"
        )
    if powers and not settings.is_embedded:
        _log.warning("role_can_rewrite_audit_log", powers=powers, remedy=with_program("see `gatekeeper grants --help`"))


def _check_capacity(database: Database, settings: Settings) -> None:
    """Say how many instances PostgreSQL has connections for; warn if it has not enough for this one."""
    if settings.is_embedded:  # It is started with as many as are needed.
        return
    capacity, workers, pool = capacity_of(database), settings.workers, settings.db_pool_size
    each = pool + CONNECTIONS_OUTSIDE_POOL
    may_open = f"this instance may open {workers * each} connections: {each} for each of {workers} workers"
    if capacity.most < workers * LEAST_CONNECTIONS:
        raise FailedPrecondition(
            f"PostgreSQL has {capacity.most} connections for this role and database, and {workers} workers need"
            f" {workers * LEAST_CONNECTIONS} at least: {capacity.limit} allows no more"
        )
    fields = {"for_us": capacity.most, "limit": capacity.limit, "in_use": capacity.in_use, "may_open": workers * each}
    if capacity.most - capacity.in_use >= workers * each:
        _log.info("database_connections", **fields, instances_that_fit=capacity.most // (workers * each))
        return
    _log.warning(
        "database_connections_short",
        **fields,
        reason=f"{may_open}, and of {capacity.most} there are {capacity.in_use} in use",
        remedy=f"raise {capacity.limit}, or lower {variable_of('db_pool_size')} or {variable_of('workers')}",
    )


def _check_ledger(settings: Settings) -> None:
    """Warn of a ledger that each instance has for itself: a restore would need all of them."""
    path = ledger_path(settings)
    if not settings.is_embedded and path.absolute().is_relative_to(settings.data_dir.absolute()):
        remedy = f"set {variable_of('erasure_ledger')} to a file that all instances share, apart from the data folder"
        _log.warning("erasure_ledger_not_shared", path=str(path), remedy=remedy)


def _report_missing_keys(database: Database, settings: Settings, keys: Keys) -> None:
    """Say which older keys are missing although something needs them. What needs none of them is served."""
    missing = {
        "data_keys": missing_data_keys(database, keys.data.ring),
        "erasure_key": erasure_ledger(settings, keys.erasure).missing(),
    }
    for name, words in missing.items():
        if words:
            _log.error("key_missing", variable=variable_of(name), error=words, remedy="put it back behind the others")


def _ensure_first_admin(logins: LoginStore, settings: Settings) -> None:
    if logins.has_admin():
        return
    if settings.admin_password is not None:
        _create_first_admin(logins, settings, settings.admin_password.get_secret_value())
    elif settings.is_embedded:
        password = generate_password()
        store_secret(settings.data_dir, ADMIN_PASSWORD, password)
        if _create_first_admin(logins, settings, password):
            print(f"First admin user: {FIRST_ADMIN}, password {password}")
            print(f"(printed once, stored in {settings.data_dir / ADMIN_PASSWORD})\n", flush=True)
    else:
        _log.warning("no_admin_user", remedy=f"set {variable_of('admin_password')} and restart")


def _create_first_admin(logins: LoginStore, settings: Settings, password: str) -> bool:
    passwords = Passwords(cost=settings.bcrypt_cost)
    password_hash = passwords.hash(password, username=FIRST_ADMIN, field=variable_of("admin_password"))
    return logins.ensure_first_admin(FIRST_ADMIN, password_hash)
