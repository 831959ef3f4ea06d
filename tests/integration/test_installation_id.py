"""Every database has an identity of its own, which follows it through dumps and restores and no further."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import UUID

import pytest

from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.embedded.binaries import find_bin_dir
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from tests.support.databases import empty_database
from tests.support.servers import KEYS
from tests.support.traces import dump, query


@pytest.fixture
def empty(postgres: str) -> Iterator[tuple[str, str]]:
    """The DSNs of two databases without a schema."""
    with ExitStack() as stack:
        yield (stack.enter_context(empty_database(postgres)), stack.enter_context(empty_database(postgres)))


def installation_id(dsn: str) -> UUID:
    ((found,),) = query(dsn, "SELECT installation_id FROM revision_head")
    assert isinstance(found, UUID)
    return found


def test_two_databases_are_two_installations(empty: tuple[str, str]) -> None:
    for dsn in empty:
        Migrator(dsn).up()

    assert installation_id(empty[0]) != installation_id(empty[1])


def test_a_restored_dump_is_the_same_installation(dsn: str, empty: tuple[str, str]) -> None:
    psql = [str(find_bin_dir() / "psql"), "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", empty[0]]
    subprocess.run(psql, input=dump(dsn), check=True, capture_output=True, text=True)

    assert installation_id(empty[0]) == installation_id(dsn)


def test_a_populated_database_goes_back_and_forth_and_loses_nothing_else(dsn: str, database: Database) -> None:
    FlagStore(database, MutationRunner(database, KEYS.data)).create(
        FlagConfig(key="kept"), Intent(caller=None, action="CreateFlag")
    )
    migrator = Migrator(dsn)

    migrator.down(to=1)
    # What the release before this one reads and writes under the lock.
    assert query(dsn, "SELECT revision + 1, audit_seq + 1, length(audit_hash) FROM revision_head") == [(2, 2, 32)]
    migrator.up()

    assert [*SnapshotStore(database).load().flags] == ["kept"]
    assert installation_id(dsn).version == 4


def test_snapshots_tell_of_which_installation_they_are(dsn: str, database: Database) -> None:
    assert SnapshotStore(database).load().installation_id == installation_id(dsn)
