"""The demo flag, and what somebody can do who has just started a server with `--demo`."""

from contextlib import closing
from dataclasses import dataclass

from gatekeeper_grpc.auth.passwords import Passwords
from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.domain.admin_user import FIRST_ADMIN
from gatekeeper_grpc.domain.errors import GatekeeperError, NotFound
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.lifecycle.keys import Keys
from gatekeeper_grpc.lifecycle.secrets_file import ADMIN_PASSWORD, read_secret
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore

DEMO_FLAG = FlagConfig(
    key="new_checkout", description="A flag to try Gatekeeper with.", enabled=True, rollout_percentage=30
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the database holds that the lines to paste depend on."""

    has_flag: bool = True
    accepts_kept_password: bool = False
    """Whether the first admin can log in with the password in the data directory."""
    accepts_set_password: bool = False
    """Whether the first admin can log in with GATEKEEPER_ADMIN_PASSWORD."""


def load_demo(database: Database, keys: Keys) -> None:
    """Create the demo flag if nothing was ever written to the database."""
    if SnapshotStore(database).head() == 0:
        _flags(database, keys).create(DEMO_FLAG, Intent(caller=None, action="CreateFlag"))


def read_demo(settings: Settings, dsn: str, keys: Keys) -> Demo:
    """Read what the database holds now: the flag may be deleted since, and the password changed."""
    try:
        with closing(Database(dsn, pool_size=2, hung_after_s=settings.db_hung_after_s)) as database:
            database.open()
            return _read(settings, database, keys)
    except GatekeeperError:  # It is away, and its last-known-good snapshot is served.
        return Demo()


def _read(settings: Settings, database: Database, keys: Keys) -> Demo:
    stored = LoginStore(database).credentials(FIRST_ADMIN)
    passwords = Passwords(cost=settings.bcrypt_cost)

    def is_accepted(password: str | None) -> bool:
        return password is not None and passwords.verify(password, stored.password_hash)

    configured = settings.admin_password
    return Demo(
        has_flag=_has_flag(database, keys),
        accepts_kept_password=is_accepted(read_secret(settings.data_dir, ADMIN_PASSWORD)),
        accepts_set_password=is_accepted(configured.get_secret_value() if configured else None),
    )


def _has_flag(database: Database, keys: Keys) -> bool:
    try:
        _flags(database, keys).get(DEMO_FLAG.key)
    except NotFound:
        return False
    return True


def _flags(database: Database, keys: Keys) -> FlagStore:
    return FlagStore(database, MutationRunner(database, keys.data))
