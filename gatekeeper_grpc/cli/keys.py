"""`gatekeeper keys`: rotates the keys that encrypt data and those that name erased people."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime

import click

from gatekeeper_grpc.auth.data_keys import DataKeys, SealError
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.cli.databases import opened, serving_dsn
from gatekeeper_grpc.config.settings import Settings, variable_of
from gatekeeper_grpc.lifecycle.key_needs import in_words, snapshots_by_key
from gatekeeper_grpc.lifecycle.keys import Keys, erasure_ledger, load_keys
from gatekeeper_grpc.lifecycle.snapshot_sources import redis_bus, snapshot_storages
from gatekeeper_grpc.privacy.erasure_ledger import ErasureLedger
from gatekeeper_grpc.privacy.reapply import AlreadyRecorded
from gatekeeper_grpc.store.erasure import ErasureStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.rewrap import SEALED_COLUMNS, SealedStore

Needs = Mapping[str, list[str]]
"""By the name of a key, what needs it."""


@click.group("keys")
def key_commands() -> None:
    """Rotate GATEKEEPER_DATA_KEYS and GATEKEEPER_ERASURE_KEY."""


def _past(context: click.Context, option: click.Parameter, time: datetime | None) -> datetime | None:
    """Read the time of an option as UTC; refuse one in the future."""
    moment = time and time.replace(tzinfo=UTC)
    if moment and moment > datetime.now(UTC):
        raise click.BadParameter("must not be in the future", context, option)
    return moment


@key_commands.command()
@click.option("--dry-run", is_flag=True, help="Change nothing; only say what needs which key.")
@click.option(
    "--oldest-backup",
    type=click.DateTime(),
    callback=_past,
    help="When the oldest backup was made that may ever be restored, in UTC. People who were erased before are not in"
    " it, so that their names in the erasure ledger need no key.",
)
@click.pass_obj
def rotate(settings: Settings, *, dry_run: bool, oldest_backup: datetime | None) -> None:
    """Encrypt and name with the newest keys what older ones did, and say which keys nothing needs.

    Servers may run; it may be interrupted and started again. Exit code 1: something needs a key that is not the newest.
    """
    keys = load_keys(settings)
    ledger = erasure_ledger(settings, keys.erasure)
    with opened(serving_dsn(settings)) as database:
        if not dry_run:
            _rewrap_all(database, keys.data)
            _rename_all(database, ledger, keys, oldest_backup)
        still_needed = [
            *_report("data_keys", keys.data.ring, _needs_of_data(settings, keys, database)),
            *_report("erasure_key", keys.erasure, _needs_of_ledger(ledger)),
        ]
    if still_needed:
        raise click.ClickException(f"older keys are needed: {', '.join(still_needed)}")


def _rewrap_all(database: Database, keys: DataKeys) -> None:
    store = SealedStore(database)
    for column in SEALED_COLUMNS:
        done = 0
        try:
            for changed in store.rewrap(column, keys.rewrap, newest=keys.newest_header):
                done += changed
        except SealError as exc:
            raise click.ClickException(f"{column.name}: {done} encrypted again, then: {exc}") from None
        click.echo(f"{column.name}: {done} encrypted again")


def _rename_all(database: Database, ledger: ErasureLedger, keys: Keys, oldest_backup: datetime | None) -> None:
    people = ErasureStore(database, MutationRunner(database, keys.data), AlreadyRecorded())
    renamed = ledger.rename(user_id for user_id, _ in people.known_since())
    click.echo(f"erased people: {renamed} named again")
    if oldest_backup:
        ledger.forget_before(oldest_backup)


def _needs_of_data(settings: Settings, keys: Keys, database: Database) -> Needs:
    needs = {kid: [in_words(things)] for kid, things in SealedStore(database).needed_keys().items()}
    with ExitStack() as stack:
        bus = redis_bus(settings, keys)
        if bus:
            stack.callback(bus.close)
        for kid, storage in snapshots_by_key(snapshot_storages(settings, bus), keys.data.ring):
            needs.setdefault(kid, []).append(f"the kept snapshot ({storage}), which a server replaces within an hour")
    return needs


def _needs_of_ledger(ledger: ErasureLedger) -> Needs:
    """Say what needs which erasure key. Their ids are unknown, so that nothing can name these people again."""
    reason = (
        "whom nothing else recognises in a restored backup: keep it while a backup may be from before (--oldest-backup)"
    )
    return {kid: [f"{count} erased people, {reason}"] for kid, count in ledger.needed_keys().items()}


def _report(name: str, ring: KeyRing, needs: Needs) -> Iterator[str]:
    """Print of each key what needs it; yield the names of those that are needed and not the newest."""
    variable = variable_of(name)
    click.echo(f"{variable}: {ring.newest.kid!r} is the newest key")
    missing = sorted(needs.keys() - set(ring.kids))
    for kid in (*ring.kids[1:], *missing):
        where = "  " if kid in ring.kids else "  MISSING, put it back behind the others: "
        if kid in needs:
            click.echo(f"{where}{kid!r} is needed by {', '.join(needs[kid])}")
            yield f"{kid!r} of {variable}"
        else:
            click.echo(f"  nothing needs {kid!r}: drop it")
