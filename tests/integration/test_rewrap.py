"""Rotation of data keys: after a rewrap the old key can go, and everything still opens; at any point it may stop."""

from collections.abc import Callable, Iterator
from typing import Any, LiteralString
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from gatekeeper_grpc.auth.data_keys import DataKeys, SealError
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.cli.keys import data_keys
from gatekeeper_grpc.config.settings import load_settings
from gatekeeper_grpc.domain.client_key import ClientKeyConfig, CreatedClientKey, RateTier
from gatekeeper_grpc.domain.mutation import Intent, Written
from gatekeeper_grpc.store.client_keys import ClientKeyStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.rewrap import SEALED_COLUMNS, SealedStore

OLD = "old:" + "o" * 32
NEW = "new:" + "n" * 32
ROTATED = f"{NEW},{OLD}"
SECRETS, ANSWERS = SEALED_COLUMNS


def ring(text: str) -> DataKeys:
    return DataKeys(KeyRing.parse(text))


def create(database: Database, keys: DataKeys, request_id: UUID) -> Written[CreatedClientKey]:
    store = ClientKeyStore(database, MutationRunner(database, keys), keys)
    intent = Intent(caller=None, action="CreateClientKey", request_id=request_id, request_hash=b"h")
    config = ClientKeyConfig(name="till", tier=RateTier.HIGH)
    secret = f"secret of {request_id}"
    return store.create(config, key_id=f"ck_{request_id}", secret=secret, kept=secret.encode(), intent=intent)


@pytest.fixture
def created(database: Database) -> list[tuple[UUID, Written[CreatedClientKey]]]:
    """Seven keys and their stored responses, sealed under the old data key."""
    ids = [uuid4() for _ in range(7)]
    return [(request_id, create(database, ring(OLD), request_id)) for request_id in ids]


def run(dsn: str, keys: str, *arguments: str) -> Any:
    settings = load_settings(DATABASE_URL=dsn, data_keys=keys)
    return CliRunner().invoke(data_keys, ["rewrap", *arguments], obj=settings)


def sealed(database: Database, query: LiteralString) -> list[bytes]:
    with database.read() as conn:
        return [bytes(value) for (value,) in conn.execute(query)]


ALL_SEALED: LiteralString = "SELECT secret FROM client_keys UNION ALL SELECT result FROM idempotency_keys"


def test_after_a_rewrap_the_old_key_can_go_and_everything_still_opens(
    database: Database, dsn: str, created: list[tuple[UUID, Written[CreatedClientKey]]]
) -> None:
    result = run(dsn, ROTATED)

    assert (result.exit_code, result.output.splitlines()) == (
        0,
        [
            "client secrets: 7 encrypted again",
            "stored responses: 7 encrypted again",
            "client secrets: 0 need an older key",
            "stored responses: 0 need an older key",
        ],
    )
    new = ring(NEW)
    opened = {new.open(secret).decode() for secret in sealed(database, "SELECT secret FROM client_keys")}
    assert opened == {written.result.secret for _, written in created}
    assert [create(database, new, request_id) for request_id, _ in created] == [written for _, written in created]


@pytest.mark.usefixtures("created")
def test_check_lists_what_is_left_and_fails_until_nothing_is(database: Database, dsn: str) -> None:
    before = sealed(database, ALL_SEALED)

    checked = run(dsn, ROTATED, "--check")

    assert checked.exit_code == 1
    assert checked.output.splitlines()[:2] == [
        "client secrets: 7 need an older key",
        "stored responses: 7 need an older key",
    ]
    assert sealed(database, ALL_SEALED) == before
    run(dsn, ROTATED)
    assert run(dsn, ROTATED, "--check").exit_code == 0
    assert run(dsn, ROTATED).output.splitlines()[0] == "client secrets: 0 encrypted again"


@pytest.mark.usefixtures("created")
@pytest.mark.parametrize("column", SEALED_COLUMNS, ids=[column.name for column in SEALED_COLUMNS])
def test_interrupted_rewrap_keeps_its_batches_and_goes_on_where_it_was(database: Database, column: Any) -> None:
    keys = ring(ROTATED)
    store = SealedStore(database, newest=keys.newest_header)
    work = store.rewrap(column, keys.rewrap, batch=3)

    first = next(work)
    del work
    left = store.count_older(column)
    rest = list(store.rewrap(column, keys.rewrap, batch=3))

    assert (first, left, rest, store.count_older(column)) == (3, 4, [3, 1], 0)


@pytest.mark.usefixtures("created")
def test_fault_in_a_batch_undoes_that_batch_alone(database: Database) -> None:
    keys = ring(ROTATED)
    store = SealedStore(database, newest=keys.newest_header)
    work = store.rewrap(SECRETS, _failing_at(5, keys.rewrap), batch=3)

    assert next(work) == 3
    with pytest.raises(SealError):
        next(work)
    assert store.count_older(SECRETS) == 4


def _failing_at(number: int, wrap: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    calls: Iterator[int] = iter(range(1, 1000))

    def failing(value: bytes) -> bytes:
        if next(calls) == number:
            raise SealError("no")
        return wrap(value)

    return failing


def test_a_row_that_changed_in_between_is_left_as_it_is(
    database: Database, created: list[tuple[UUID, Written[CreatedClientKey]]]
) -> None:
    keys = ring(ROTATED)
    store = SealedStore(database, newest=keys.newest_header)
    theirs = keys.seal(b"theirs")

    def meddling(value: bytes) -> bytes:
        with database.write() as conn:
            conn.execute("UPDATE client_keys SET secret = %(theirs)s", {"theirs": theirs})
        return keys.rewrap(value)

    assert list(store.rewrap(SECRETS, meddling, batch=len(created))) == [0]
    assert sealed(database, "SELECT DISTINCT secret FROM client_keys") == [theirs]


@pytest.mark.usefixtures("created")
def test_key_that_is_missing_is_named_and_nothing_is_lost(database: Database, dsn: str) -> None:
    before = sealed(database, ALL_SEALED)

    result = run(dsn, NEW)

    assert result.exit_code == 1
    assert "data encrypted with key 'old' cannot be decrypted" in result.output
    assert sealed(database, ALL_SEALED) == before


def test_the_answers_column_is_covered_under_keys_with_similar_names(database: Database, dsn: str) -> None:
    """The name's length stands before it: "k" does not pass for "k2"."""
    create(database, ring("k2:" + "o" * 32), uuid4())

    run(dsn, "k:" + "n" * 32 + ",k2:" + "o" * 32)

    keys = ring("k:" + "n" * 32)
    assert SealedStore(database, newest=keys.newest_header).count_older(ANSWERS) == 0
    assert [keys.key_of(value) for value in sealed(database, ALL_SEALED)] == ["k", "k"]
