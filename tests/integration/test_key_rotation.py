"""Rotation of keys: after it an old one can go, and everything still opens; at any point it may stop."""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.auth.data_keys import DataKeys, SealError
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.cli.keys import key_commands
from gatekeeper_grpc.config.settings import load_settings
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.client_key import ClientKeyConfig, CreatedClientKey, RateTier
from gatekeeper_grpc.domain.mutation import Intent, Written
from gatekeeper_grpc.lifecycle.key_needs import use_data_keys
from gatekeeper_grpc.lifecycle.prepare_database import prepare_database
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.privacy.erasure_ledger import ErasureLedger
from gatekeeper_grpc.store.client_keys import ClientKeyStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.rewrap import SEALED_COLUMNS, SealedStore
from tests.support.clients import TIMEOUT_S
from tests.support.processes import start
from tests.support.servers import KEYS, connect, settings_for_tests, token_for
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("D2")

OLD = "old:canary7f3a" + "o" * 32
NEW = "new:canary7f3a" + "n" * 32
ROTATED = f"{NEW},{OLD}"
SECRETS, ANSWERS = SEALED_COLUMNS
ERASURE_RING = "e2:canary7f3a" + "f" * 32 + ",e1:canary7f3a" + "e" * 32
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data directory of the command."""
    return tmp_path


@pytest.fixture
def rotate(dsn: str, folder: Path) -> Iterator[Callable[..., Any]]:
    """Runs `gatekeeper keys rotate` with a ring of data keys; no key may show in what it says."""
    printed = []

    def run(keys: str, *arguments: str, erasure: str = ERASURE_RING) -> Any:
        settings = load_settings(DATABASE_URL=dsn, data_keys=keys, erasure_key=erasure, jwt_keys=OLD, data_dir=folder)
        result = CliRunner().invoke(key_commands, ["rotate", *arguments], obj=settings)
        printed.append(f"{result.output} {result.exception}")
        return result

    yield run
    assert "canary7f3a" not in "".join(printed)


def older(database: Database, column: Any, kid: str = "old") -> int:
    return SealedStore(database).needed_keys().get(kid, {}).get(column.name, 0)


def sealed(database: Database, query: LiteralString) -> list[bytes]:
    with database.read() as conn:
        return [bytes(value) for (value,) in conn.execute(query)]


ALL_SEALED: LiteralString = "SELECT secret FROM client_keys UNION ALL SELECT result FROM idempotency_keys"


def test_after_a_rotation_the_old_key_can_go_and_everything_still_opens(
    database: Database, rotate: Callable[..., Any], created: list[tuple[UUID, Written[CreatedClientKey]]]
) -> None:
    result = rotate(ROTATED)

    assert (result.exit_code, result.output.splitlines()) == (
        0,
        [
            "client secrets: 7 encrypted again",
            "stored responses: 7 encrypted again",
            "erased people: 0 named again",
            "GATEKEEPER_DATA_KEYS: 'new' is the newest key",
            "  nothing needs 'old': drop it",
            "GATEKEEPER_ERASURE_KEY: 'e2' is the newest key",
            "  nothing needs 'e1': drop it",
        ],
    )
    new = ring(NEW)
    opened = {new.open(secret).decode() for secret in sealed(database, "SELECT secret FROM client_keys")}
    assert opened == {written.result.secret for _, written in created}
    assert [create(database, new, request_id) for request_id, _ in created] == [written for _, written in created]


@pytest.mark.usefixtures("created")
def test_a_dry_run_changes_nothing_and_fails_until_nothing_is_left(
    database: Database, rotate: Callable[..., Any]
) -> None:
    before = sealed(database, ALL_SEALED)

    checked = rotate(ROTATED, "--dry-run")

    assert checked.exit_code == 1
    assert checked.output.splitlines()[:2] == [
        "GATEKEEPER_DATA_KEYS: 'new' is the newest key",
        "  'old' is needed by 7 client secrets and 7 stored responses",
    ]
    assert sealed(database, ALL_SEALED) == before
    rotate(ROTATED)
    assert rotate(ROTATED, "--dry-run").exit_code == 0
    assert rotate(ROTATED).output.splitlines()[0] == "client secrets: 0 encrypted again"


@pytest.mark.usefixtures("created")
@pytest.mark.parametrize("column", SEALED_COLUMNS, ids=[column.name for column in SEALED_COLUMNS])
def test_interrupted_rewrap_keeps_its_batches_and_goes_on_where_it_was(database: Database, column: Any) -> None:
    keys = ring(ROTATED)
    store = SealedStore(database)
    work = store.rewrap(column, keys.rewrap, newest=keys.newest_header, batch=3)

    first = next(work)
    del work
    left = older(database, column)
    rest = list(store.rewrap(column, keys.rewrap, newest=keys.newest_header, batch=3))

    assert (first, left, rest, older(database, column)) == (3, 4, [3, 1], 0)


@pytest.mark.usefixtures("created")
def test_fault_in_a_batch_undoes_that_batch_alone(database: Database) -> None:
    keys = ring(ROTATED)
    store = SealedStore(database)
    work = store.rewrap(SECRETS, _failing_at(5, keys.rewrap), newest=keys.newest_header, batch=3)

    assert next(work) == 3
    with pytest.raises(SealError):
        next(work)
    assert older(database, SECRETS) == 4


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
    store = SealedStore(database)
    theirs = keys.seal(b"theirs")

    def meddling(value: bytes) -> bytes:
        with database.write() as conn:
            conn.execute("UPDATE client_keys SET secret = %(theirs)s", {"theirs": theirs})
        return keys.rewrap(value)

    assert list(store.rewrap(SECRETS, meddling, newest=keys.newest_header, batch=len(created))) == [0]
    assert sealed(database, "SELECT DISTINCT secret FROM client_keys") == [theirs]


@pytest.mark.usefixtures("created")
def test_a_key_that_is_missing_is_named_and_nothing_is_lost(database: Database, rotate: Callable[..., Any]) -> None:
    before = sealed(database, ALL_SEALED)

    result = rotate(NEW)

    assert result.exit_code == 1
    assert "MISSING, put it back behind the others: 'old' is needed by 7 client secrets and 7 stored" in result.output
    assert sealed(database, ALL_SEALED) == before


def test_an_altered_secret_ends_the_rotation_and_is_not_lost(
    database: Database, rotate: Callable[..., Any], created: list[tuple[UUID, Written[CreatedClientKey]]]
) -> None:
    with database.write() as conn:
        conn.execute("UPDATE client_keys SET secret = set_byte(secret, 30, (get_byte(secret, 30) + 1) % 256)")

    result = rotate(ROTATED)

    assert result.exit_code == 1
    assert "client secrets: 0 encrypted again, then: data encrypted with key 'old' cannot be decrypted" in result.output
    assert older(database, SECRETS) == len(created)


def test_the_answers_column_is_covered_under_keys_with_similar_names(
    database: Database, rotate: Callable[..., Any]
) -> None:
    """The name's length stands before it: "k" does not pass for "k2"."""
    create(database, ring("k2:" + "o" * 32), uuid4())

    rotate("k:" + "n" * 32 + ",k2:" + "o" * 32)

    keys = ring("k:" + "n" * 32)
    assert older(database, ANSWERS, "k2") == 0
    assert [keys.key_of(value) for value in sealed(database, ALL_SEALED)] == ["k", "k"]


# --- Killed, and with traffic -----------------------------------------------------------------------------------------


def answers(database: Database, keys: DataKeys, count: int) -> None:
    """Store so many responses, sealed with the newest key."""
    rows = [(f"{number:05}", uuid4(), keys.seal(b"{}")) for number in range(count)]
    with database.write() as conn, conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO idempotency_keys VALUES (%s, 'CreateFlag', %s, 1, 1, '', '{}', %s, clock_timestamp())", rows
        )


def test_a_killed_rotation_keeps_its_batches_and_the_next_one_ends_it(
    database: Database, dsn: str, rotate: Callable[..., Any], folder: Path
) -> None:
    answers(database, ring(OLD), 1_200)
    settings = {"DATABASE_URL": dsn, "GATEKEEPER_DATA_KEYS": ROTATED, "GATEKEEPER_ERASURE_KEY": ERASURE_RING}
    with psycopg.connect(dsn) as holding:
        holding.execute("SELECT FROM idempotency_keys WHERE actor = '00700' FOR UPDATE")
        with start("keys", "rotate", data_dir=folder, GATEKEEPER_JWT_KEYS=OLD, **settings) as process:
            # The first batch of 500 is committed; the second one waits for the row.
            assert eventually(lambda: older(database, ANSWERS) == 700)
            process.send_signal(signal.SIGKILL)
            said = "".join(process.communicate(timeout=TIMEOUT_S))
    assert "canary7f3a" not in said
    assert older(database, ANSWERS) == 700

    result = rotate(ROTATED)

    assert (result.exit_code, result.output.splitlines()[1]) == (0, "stored responses: 700 encrypted again")


@contextmanager
def instance(dsn: str, keys: str) -> Iterator[GatekeeperServer]:
    server = GatekeeperServer(settings_for_tests(), dsn=dsn, keys=replace(KEYS, data=ring(keys)))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def repeating(token: str, first: GatekeeperServer, then: GatekeeperServer) -> Iterator[list[object]]:
    """Create flags on one instance and repeat each request on the other one; yields how that ended."""
    ended: list[object] = []
    over = threading.Event()

    def go_on() -> None:
        with connect(first, token=token) as one, connect(then, token=token) as other:
            while not over.is_set():
                request = pb.CreateFlagRequest(flag=Flag(key=f"f{uuid4().hex}"), request_id=str(uuid4()))
                try:
                    answers = [AdminServiceStub(each).CreateFlag(request, timeout=TIMEOUT_S) for each in (one, other)]
                    ended.append("same" if answers[0] == answers[1] else answers)
                except grpc.RpcError as error:
                    ended.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join(TIMEOUT_S)


@pytest.mark.parametrize("knows_the_new_key", [True, False], ids=["appended first", "twin: put in front at once"])
def test_rotating_while_old_and_new_instances_serve_fails_no_call(
    database: Database, dsn: str, rotate: Callable[..., Any], *, knows_the_new_key: bool
) -> None:
    answers(database, ring(OLD), 1_200)
    old_ring = f"{OLD},{NEW}" if knows_the_new_key else OLD
    with instance(dsn, old_ring) as old, instance(dsn, ROTATED) as new:
        token = token_for(dsn, Role.ADMIN)
        with repeating(token, new, old) as there, repeating(token, old, new) as back:
            assert eventually(lambda: len(there) > 5 and len(back) > 5)
            during = rotate(ROTATED)
            counts = len(there), len(back)
            assert eventually(lambda: len(there) > counts[0] + 5 and len(back) > counts[1] + 5)
        assert re.search("stored responses: [0-9]{4} encrypted again", during.output)
        assert ({*map(str, there)} == {"same"}) is knows_the_new_key
        use_data_keys(old._keys.data, KeyRing.parse(ROTATED), database)
        after = rotate(ROTATED)

    assert after.exit_code == 0
    assert older(database, ANSWERS) == 0


# --- What the ring may lose -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("created")
def test_a_running_instance_drops_no_key_that_rows_need(database: Database, rotate: Callable[..., Any]) -> None:
    keys = ring(ROTATED)

    with pytest.raises(ValueError, match="'old' is missing, with which 7 client secrets and 7 stored responses are"):
        use_data_keys(keys, KeyRing.parse(NEW), database)
    assert keys.open(ring(OLD).seal(b"x")) == b"x"
    rotate(ROTATED)
    use_data_keys(keys, KeyRing.parse(NEW), database)
    with pytest.raises(SealError):
        keys.open(ring(OLD).seal(b"x"))


@pytest.mark.usefixtures("created")
def test_a_start_says_which_keys_are_missing_and_what_needs_them(dsn: str, folder: Path) -> None:
    erasure = KeyRing.parse(ERASURE_RING)
    settings = load_settings(DATABASE_URL=dsn, data_dir=folder)
    ErasureLedger(folder / "erasures", KeyRing(erasure.keys[1:])).record("anna", NOON)

    with capture_logs() as logs:
        prepare_database(settings, dsn, replace(KEYS, data=ring(NEW), erasure=KeyRing(erasure.keys[:1])), demo=False)

    said = {log["variable"]: log["error"] for log in logs if log["event"] == "key_missing"}
    encrypted = "with which 7 client secrets and 7 stored responses are encrypted"
    named = "by whose names alone the erasure ledger knows 1 of the erased people"
    assert said == {
        "GATEKEEPER_DATA_KEYS": f"key 'old' is missing, {encrypted}",
        "GATEKEEPER_ERASURE_KEY": f"key 'e1' is missing, {named}",
    }


def test_a_kept_snapshot_needs_its_key_until_a_server_replaces_it(
    dsn: str, rotate: Callable[..., Any], folder: Path
) -> None:
    settings = settings_for_tests(data_dir=folder, snapshot_file=folder / "snapshot")
    server = GatekeeperServer(settings, dsn=dsn, keys=replace(KEYS, data=ring(OLD)))
    server.start()
    server.stop()

    result = rotate(ROTATED)

    assert result.exit_code == 1
    assert "'old' is needed by the kept snapshot (file), which a server replaces within an hour\n" in result.output
    (folder / "snapshot").unlink()
    assert rotate(ROTATED).exit_code == 0


def test_an_erased_person_keeps_the_old_key_until_no_backup_is_so_old(
    database: Database, rotate: Callable[..., Any], folder: Path
) -> None:
    erasure = KeyRing.parse(ERASURE_RING)
    ledger = ErasureLedger(folder / "erasures", KeyRing(erasure.keys[1:]))
    ledger.record("anna", NOON)
    ledger.record("bob", NOON)
    with database.write() as conn:
        conn.execute("INSERT INTO subjects (user_id, salt) VALUES ('bob', '')")

    result = rotate(NEW)

    assert (result.exit_code, result.output.splitlines()[2]) == (1, "erased people: 1 named again")
    assert "'e1' is needed by 1 erased people, whom nothing else recognises in a restored backup" in result.output
    assert rotate(NEW, "--oldest-backup", "2026-01-01").exit_code == 1
    assert rotate(NEW, "--oldest-backup", "2999-01-01").exit_code == 2
    assert rotate(NEW, "--oldest-backup", f"{NOON + timedelta(days=1):%Y-%m-%d}").exit_code == 0
    assert ErasureLedger(folder / "erasures", KeyRing(erasure.keys[:1])).missing() == ""
