"""`gatekeeper data-keys`: rotates the keys that encrypt what the database keeps."""

import click

from gatekeeper_grpc.auth.data_keys import DataKeys, SealError
from gatekeeper_grpc.cli.databases import opened, serving_dsn
from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.lifecycle.keys import load_data_keys
from gatekeeper_grpc.store.rewrap import SEALED_COLUMNS, SealedStore


@click.group("data-keys")
def data_keys() -> None:
    """Rotate GATEKEEPER_DATA_KEYS: append a new key, move it to the front, rewrap, drop the old one."""


@data_keys.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if an older key is needed.")
@click.pass_obj
def rewrap(settings: Settings, *, check: bool) -> None:
    """Encrypt everything again under the newest key. Servers may run; it may be interrupted and started again."""
    keys = load_data_keys(settings)
    with opened(serving_dsn(settings)) as database:
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
            raise click.ClickException(f"{column.name}: {done} encrypted again, then: {exc}") from None
        click.echo(f"{column.name}: {done} encrypted again")


def _report(store: SealedStore) -> None:
    older = {column.name: store.count_older(column) for column in SEALED_COLUMNS}
    for name, count in older.items():
        click.echo(f"{name}: {count} need an older key")
    if any(older.values()):
        raise click.ClickException("an older key is needed: run `gatekeeper data-keys rewrap`")
