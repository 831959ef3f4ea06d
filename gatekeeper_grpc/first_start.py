"""What has to be there before anything is served: the schema, keys, the first admin user."""

import secrets
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import structlog
from pydantic import SecretStr

from gatekeeper_grpc.auth.checkpoints import CheckpointSigner, new_signing_key
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import MIN_SECRET_BYTES, KeyRing
from gatekeeper_grpc.auth.passwords import Passwords, generate_password
from gatekeeper_grpc.config import Settings, SettingsError, variable_of
from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.erasure_ledger import DEFAULT_NAME, ErasureLedger
from gatekeeper_grpc.secrets_file import ADMIN_PASSWORD, keep_secret, kept_secret, new_key_ring, read_secret
from gatekeeper_grpc.store.database import Database
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.ledger import Ledger
from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.migrate import Migrator
from gatekeeper_grpc.store.privileges import Privileges
from gatekeeper_grpc.store.snapshots import SnapshotStore

_log = structlog.get_logger(__name__)

FIRST_ADMIN = "admin"
# A start does not wait longer for an answer; it asks again.
_CONNECT_TIMEOUT_S = 2
DEMO_FLAG = FlagConfig(
    key="new_checkout", description="A flag to try Gatekeeper with.", enabled=True, rollout_percentage=30
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of an installation; each has one use."""

    tokens: KeyRing
    """Sign access tokens."""
    data: DataKeys
    """Encrypt what the database keeps."""
    erasure: bytes
    """Names erased user ids in the erasure ledger."""
    audit: CheckpointSigner | None = None
    """Signs audit checkpoints; None: there are none."""


def load_keys(settings: Settings) -> Keys:
    """Return the keys: the operator's, those kept in the data directory, or, embedded, new ones.

    Errors: `SettingsError` when some are missing or malformed.
    """
    return Keys(
        tokens=_key_ring(settings, "jwt_keys", settings.jwt_keys),
        data=load_data_keys(settings),
        erasure=load_erasure_key(settings),
        audit=load_audit_signer(settings),
    )


def load_data_keys(settings: Settings) -> DataKeys:
    """Return the keys that encrypt what the database keeps."""
    return DataKeys(_key_ring(settings, "data_keys", settings.data_keys))


def load_erasure_key(settings: Settings) -> bytes:
    """Return the key of the erasure ledger."""
    text = _key_text(settings, "erasure_key", settings.erasure_key, lambda: secrets.token_urlsafe(32))
    if text is None or len(text.encode()) < MIN_SECRET_BYTES:
        variable = variable_of("erasure_key")
        raise SettingsError(f"{variable} must be {MIN_SECRET_BYTES} bytes or more, the same for all instances")
    return text.encode()


def erasure_ledger(settings: Settings, keys: Keys) -> ErasureLedger:
    """Return the erasure ledger that the settings name."""
    return ErasureLedger(settings.erasure_ledger or settings.data_dir / DEFAULT_NAME, keys.erasure)


def load_audit_signer(settings: Settings) -> CheckpointSigner | None:
    """Return what signs audit checkpoints; None when the operator gave no key for that."""
    text = _key_text(settings, "audit_signing_key", settings.audit_signing_key, new_signing_key)
    if text is None:
        return None
    try:
        return CheckpointSigner.parse(text)
    except ValueError as exc:
        raise SettingsError(f"{variable_of('audit_signing_key')}: {exc}") from None


def _key_ring(settings: Settings, name: str, configured: SecretStr | None) -> KeyRing:
    text = _key_text(settings, name, configured, new_key_ring)
    if text is None:
        raise SettingsError(
            f"{variable_of(name)} is not set; all instances on a database need the same keys, kid:secret[,...]"
        )
    try:
        return KeyRing.parse(text)
    except ValueError as exc:
        raise SettingsError(f"{variable_of(name)}: {exc}") from None


def _key_text(settings: Settings, name: str, configured: SecretStr | None, make: Callable[[], str]) -> str | None:
    if configured is not None:
        return configured.get_secret_value()
    if settings.is_embedded:
        return kept_secret(settings.data_dir, name, make)
    return read_secret(settings.data_dir, name)


def prepare_database(settings: Settings, dsn: str, keys: Keys, *, demo: bool) -> None:
    """Make a database fit to be served from, or raise what says why it is not.

    The embedded one is migrated; of any other it is demanded. The first admin user is made when there is none; with
    `demo`, an embedded database that nobody has written to gets a flag.
    """
    migrator = Migrator(dsn, connect_timeout_s=_CONNECT_TIMEOUT_S)
    if settings.is_embedded:
        migrator.up()
    else:
        migrator.verify()
    with closing(Database(dsn, pool_size=2, hung_after_s=settings.db_hung_after_s)) as database:
        database.open()
        _check_privileges(Privileges(database), settings)
        _ensure_first_admin(LoginStore(database), settings)
        if demo and settings.is_embedded:
            _load_demo(database, keys)


def _check_privileges(privileges: Privileges, settings: Settings) -> None:
    """Say, or refuse to go on, when the serving role could rewrite the audit log. Of the embedded database it can."""
    powers = privileges.rewriting_powers()
    if powers and settings.require_least_privilege:
        raise FailedPrecondition(
            f"the database role could rewrite the audit log: {'; '.join(powers)}. Serve with a role that owns nothing"
            f" (`gatekeeper grants --help`), or unset {variable_of('require_least_privilege')}"
        )
    if powers and not settings.is_embedded:
        _log.warning("role_can_rewrite_audit_log", powers=powers, remedy="see `gatekeeper grants --help`")


def _ensure_first_admin(logins: LoginStore, settings: Settings) -> None:
    if logins.has_admin():
        return
    if settings.admin_password is not None:
        _create_first_admin(logins, settings, settings.admin_password.get_secret_value())
    elif settings.is_embedded:
        password = generate_password()
        keep_secret(settings.data_dir, ADMIN_PASSWORD, password)
        if _create_first_admin(logins, settings, password):
            print(f"First admin user: {FIRST_ADMIN}, password {password}")
            print(f"(shown once, kept in {settings.data_dir / ADMIN_PASSWORD})\n", flush=True)
    else:
        _log.warning("no_admin_user", remedy=f"set {variable_of('admin_password')} and restart")


def _create_first_admin(logins: LoginStore, settings: Settings, password: str) -> bool:
    password_hash = Passwords(cost=settings.bcrypt_cost).hash(password, field=variable_of("admin_password"))
    return logins.ensure_first_admin(FIRST_ADMIN, password_hash)


def _load_demo(database: Database, keys: Keys) -> None:
    if SnapshotStore(database).load().revision == 0:
        FlagStore(database, Ledger(database, keys.data)).create(DEMO_FLAG, Intent(caller=None, action="CreateFlag"))
