"""`gatekeeper restore-finish` and `gatekeeper erasures`: the steps after a backup was restored."""

import click

from gatekeeper_grpc.cli.databases import opened, serving_dsn
from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.lifecycle.keys import Keys, erasure_ledger, load_keys
from gatekeeper_grpc.privacy.reapply import AlreadyRecorded, reapply_erasures
from gatekeeper_grpc.store.erasure import ErasureStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots.epochs import Epochs


@click.command("restore-finish")
@click.option(
    "--known-revision",
    type=click.IntRange(min=0),
    default=0,
    help="The newest revision that a log or a client knows. Without it, a second restore from a backup older than the"
    " first restore would start the same epoch again.",
)
@click.pass_obj
def restore_finish(settings: Settings, *, known_revision: int) -> None:
    """Finish a restore: start a new epoch of revisions, then erase again everybody who was erased since the backup."""
    keys = load_keys(settings)
    with opened(serving_dsn(settings)) as database:
        written = Epochs(MutationRunner(database, keys.data)).start_after_restore(known_revision=known_revision)
        click.echo(f"new epoch: revision {written.revision}")
        _reapply(settings, keys, database)


@click.group("erasures")
def erasure_commands() -> None:
    """Work with the ledger of erased people."""


@erasure_commands.command()
@click.pass_obj
def reapply(settings: Settings) -> None:
    """Erase everybody in the ledger whose data from before the erasure is in the database."""
    keys = load_keys(settings)
    with opened(serving_dsn(settings)) as database:
        _reapply(settings, keys, database)


def _reapply(settings: Settings, keys: Keys, database: Database) -> None:
    ledger = erasure_ledger(settings, keys.erasure)
    erasures = ErasureStore(database, MutationRunner(database, keys.data), AlreadyRecorded())
    done = reapply_erasures(erasures, ledger)
    click.echo(f"erased again: {done.erased}")
    if faults := [*done.refusals, *filter(None, [ledger.missing()])]:
        raise click.ClickException("\n".join(faults))
