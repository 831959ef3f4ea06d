"""`gatekeeper data-keys`: rotates the keys that encrypt what the database keeps."""

from contextlib import closing

import click

from gatekeeper_grpc.auth.data_keys import DataKeys, SealError
from gatekeeper_grpc.cli.options import HELP
from gatekeeper_grpc.config import Settings
from gatekeeper_grpc.embedded import running_dsn
from gatekeeper_grpc.lifecycle.keys import load_data_keys
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.rewrap import SEALED_COLUMNS, SealedStore


@click.group("data-keys", context_settings=HELP)
def data_keys() -> None:
    """Rotate GATEKEEPER_DATA_KEYS: append a new key, move it to the front, rewrap, drop the old one."""


@data_keys.command()
@click.option("--check", is_flag=True, help="Change nothing; fail while an older key is still needed.")
@click.pass_obj
def rewrap(settings: Settings, *, check: bool) -> None:
    """Seal everything anew under the newest key. May be interrupted and begun again, while servers run."""
    keys = load_data_keys(settings)
    url = settings.database_url
    dsn = url.get_secret_value() if url else running_dsn(settings.data_dir)
    with closing(Database(dsn, pool_size=2)) as database:
        database.open()
        store = SealedStore(database, newest=keys.newest_header)
        if not check:
            _rewrap_all(store, keys)
        _report(store)


def _rewrap_all(store: SealedStore, keys: DataKeys) -> None:
    for column in SEALED_COLUMNS:
        done = 0
        try:
            for changed in store.rewrap(column, keys.rewrap):
                done += changed
        except SealError as exc:
            raise click.ClickException(f"{column.name}: {done} sealed anew, then: {exc}") from None
        click.echo(f"{column.name}: {done} sealed anew")


def _report(store: SealedStore) -> None:
    older = {column.name: store.count_older(column) for column in SEALED_COLUMNS}
    for name, count in older.items():
        click.echo(f"{name}: {count} still need an older key")
    if any(older.values()):
        raise click.ClickException("older keys are still needed; run `gatekeeper data-keys rewrap`")
