"""Restores and lost commits: no revision is issued twice, nobody who was erased comes back."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import LiteralString
from uuid import uuid4

import grpc
import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, EvaluateFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cli import main as cli
from gatekeeper_grpc.cli import operator_settings
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres import servers as servers_module
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.servers import Refusals
from gatekeeper_grpc.store.snapshots.epochs import Epochs
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from tests.support.clients import TIMEOUT_S, race, send
from tests.support.databases import copy_database, database_name
from tests.support.outages import close_database
from tests.support.servers import KEYS, StartServer, connect, settings_for_tests, token_for
from tests.support.traces import live, query, traces, user_with
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("E2", "D9")

EPOCH = REVISIONS_PER_EPOCH


@dataclass(frozen=True, slots=True)
class Backups:
    """Copies of this test's database, put in its place again while instances run."""

    server_dsn: str
    name: str
    made: list[str] = field(default_factory=list)

    def make(self) -> str:
        copy = f"backup_{uuid4().hex}"
        with self._nobody_connected():
            self._copy(self.name, copy)
        self.made.append(copy)
        return copy

    def restore(self, backup: str) -> None:
        with self._nobody_connected():
            self._run("DROP DATABASE {}", self.name)
            self._copy(backup, self.name)

    def drop(self) -> None:
        for copy in self.made:
            self._run("DROP DATABASE {}", copy)

    @contextmanager
    def _nobody_connected(self) -> Iterator[None]:
        with psycopg.connect(self.server_dsn, autocommit=True) as conn:
            close_database(self.name, conn)
        yield
        self._run("ALTER DATABASE {} ALLOW_CONNECTIONS true", self.name)

    def _copy(self, source: str, name: str) -> None:
        with psycopg.connect(self.server_dsn, autocommit=True) as conn:
            copy_database(conn, source, name)

    def _run(self, statement: LiteralString, *names: str) -> None:
        with psycopg.connect(self.server_dsn, autocommit=True) as conn:
            conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture
def backups(postgres: str, dsn: str) -> Iterator[Backups]:
    backups = Backups(postgres, database_name(dsn))
    yield backups
    backups.drop()


@pytest.fixture
def servers(start_server: StartServer, tmp_path: Path) -> list[GatekeeperServer]:
    return [start_server(data_dir=tmp_path, refresh_interval_s=0.1) for _ in range(2)]


@pytest.fixture
def admin(servers: list[GatekeeperServer], dsn: str) -> Iterator[AdminServiceStub]:
    with connect(servers[0], token=token_for(dsn, Role.ADMIN)) as channel:
        yield AdminServiceStub(channel)


Gatekeeper = Callable[..., Result]


@pytest.fixture
def gatekeeper(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gatekeeper:
    """Runs a `gatekeeper` command on this test's database."""
    (tmp_path / "jwt_keys").write_text("test:0123456789abcdef0123456789abcdef")
    (tmp_path / "data_keys").write_text("data:fedcba9876543210fedcba9876543210")
    (tmp_path / "erasure_key").write_text("erasure:0f1e2d3c4b5a69780f1e2d3c4b5a6978")
    monkeypatch.setenv("DATABASE_URL", dsn)
    monkeypatch.setenv("GATEKEEPER_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(operator_settings, "configure_logs", lambda **_settings: None)

    def run(*arguments: str) -> Result:
        # A command is a process of its own: it does not wait because the server has just been refused.
        monkeypatch.setattr(servers_module, "_REFUSALS", Refusals())
        with capture_logs():  # Else they come between what is printed.
            return CliRunner().invoke(cli.gatekeeper, arguments)

    return run


def create(admin: AdminServiceStub, key: str) -> int:
    return int(send(admin, "CreateFlag", pb.CreateFlagRequest(flag=Flag(key=key))).revision)


def serve(servers: list[GatekeeperServer], revision: int) -> bool:
    """Wait until all instances serve a revision, without asking them to look for it."""
    caches = [server.cache for server in servers]
    for cache in caches:
        with cache._changed:
            assert cache._changed.wait_for(partial(_serves, cache, revision), TIMEOUT_S), cache.current().revision
    return True


def _serves(cache: SnapshotCache, revision: int) -> bool:
    return cache.current().revision >= revision


def evaluate(server: GatekeeperServer, *keys: str, min_revision: int = 0) -> EvaluateFlagsResponse:
    request = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"), flag_keys=keys, min_revision=min_revision)
    with connect(server) as channel:
        return EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S)


@contextmanager
def evaluating(servers: list[GatekeeperServer]) -> Iterator[None]:
    """Evaluate all the time, on every instance; no call may fail, and on none may the revision go back."""
    over, failures, calls = threading.Event(), list[object](), list[int]()

    def go_on(server: GatekeeperServer) -> None:
        newest = 0
        with connect(server) as channel:
            stub = EvaluationServiceStub(channel)
            request = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"), flag_keys=["alpha"])
            while not over.wait(0.002):
                try:
                    answer = stub.EvaluateFlags(request, timeout=TIMEOUT_S)
                except grpc.RpcError as error:
                    failures.append(error)
                else:
                    calls.append(answer.revision)
                    failures.extend([answer.revision] if answer.revision < newest else [])
                    newest = answer.revision

    threads = [threading.Thread(target=go_on, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert failures == []
    assert calls


def chain_is_whole(dsn: str) -> bool:
    database = Database(dsn)
    database.open()
    try:
        *_, last = AuditStore(database).verify()
        return last.complete
    finally:
        database.close()


# --- Commits that were lost -------------------------------------------------------------------------------------------


def test_instances_that_served_lost_commits_begin_one_epoch(
    servers: list[GatekeeperServer],
    admin: AdminServiceStub,
    backups: Backups,
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create(admin, "alpha")
    backup = backups.make()
    lost = [create(admin, "beta"), create(admin, "gamma")]
    assert serve(servers, max(lost))

    with capture_logs() as logs, evaluating(servers):
        backups.restore(backup)
        assert serve(servers, EPOCH)
        assert eventually(lambda: [log["event"] for log in logs].count("commits_lost") == 2)

    assert [log["event"] for log in logs].count("epoch_begun") == 1
    assert {log["last_served_revision"] for log in logs if log["event"] == "commits_lost"} == {max(lost)}
    assert query(dsn, "SELECT action, revision FROM audit_log ORDER BY seq") == [
        ("CreateFlag", 1),
        ("ReportLoss", EPOCH),
    ]
    for server in servers:
        answer = evaluate(server, "alpha", "beta", "gamma", min_revision=max(lost))
        assert (answer.revision, list(answer.unknown_flag_keys)) == (EPOCH, ["beta", "gamma"])

    monkeypatch.setattr(SnapshotStore, "load", lambda _: pytest.fail("no delta inside the new epoch"))
    assert [create(admin, "beta"), create(admin, "delta")] == [EPOCH + 1, EPOCH + 2]
    assert serve(servers, EPOCH + 2)
    assert [list(evaluate(server, "delta").unknown_flag_keys) for server in servers] == [[], []]
    assert chain_is_whole(dsn)


def test_of_many_who_report_one_loss_one_begins_an_epoch(database: Database) -> None:
    restore = Epochs(MutationRunner(database, KEYS.data))

    written = race([partial(restore.start_if_lost, known) for known in range(1, 9)])

    assert sorted(each.result for each in written) == [False] * 7 + [True]
    assert {each.revision for each in written} == {EPOCH}


def test_of_many_who_report_another_history_one_begins_an_epoch(database: Database) -> None:
    ledger = MutationRunner(database, KEYS.data)
    restore, intent = Epochs(ledger), Intent(caller=None, action="CreateFlag")
    written = FlagStore(database, ledger).create(FlagConfig(key="alpha"), intent)
    assert written.anchor

    assert not restore.start_if_lost(1, written.anchor.hash).result
    reported = race([partial(restore.start_if_lost, 1, b"another") for _ in range(8)])

    assert sorted(each.result for each in reported) == [False] * 7 + [True]
    assert {each.revision for each in reported} == {EPOCH}


@pytest.mark.parametrize(
    ("head", "known", "expected"),
    [
        pytest.param(5, 5, (False, 5), id="nothing is lost"),
        pytest.param(6, 5, (False, 6), id="others wrote in between"),
        pytest.param(5, 6, (True, EPOCH), id="one is lost"),
        pytest.param(EPOCH + 5, EPOCH + 6, (True, 2 * EPOCH), id="in a later epoch"),
        pytest.param(5, 2 * EPOCH, (True, 3 * EPOCH), id="epochs are lost"),
    ],
)
def test_an_epoch_begins_only_after_a_loss_and_after_all_that_is_known(
    database: Database, head: int, known: int, expected: tuple[bool, int]
) -> None:
    with database.write() as conn:
        conn.execute("UPDATE revision_head SET revision = %s", (head,))

    written = Epochs(MutationRunner(database, KEYS.data)).start_if_lost(known)

    assert (written.result, written.revision) == expected


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "twin without the guard"])
def test_an_instance_reissues_no_revision_before_it_has_noticed(dsn: str, *, guarded: bool) -> None:
    server = GatekeeperServer(settings_for_tests(), dsn=dsn, keys=KEYS)
    server.database.open()
    ((installation_id,),) = query(dsn, "SELECT installation_id FROM revision_head")
    server.cache.publish(Snapshot.build(installation_id=installation_id, revision=3), confirmed_at=0.0)
    if not guarded:
        server.mutations._served_revision = lambda _: 0
    intent = Intent(caller=None, action="CreateFlag")
    try:
        if guarded:
            with pytest.raises(Unavailable, match="lost revisions"):
                server.stores.flags.create(FlagConfig(key="alpha"), intent)
        else:
            assert server.stores.flags.create(FlagConfig(key="alpha"), intent).revision == 1
    finally:
        server.database.close()

    assert query(dsn, "SELECT revision FROM revision_head") == [(0 if guarded else 1,)]


def test_what_was_served_of_another_installation_keeps_nobody_from_writing(dsn: str) -> None:
    server = GatekeeperServer(settings_for_tests(), dsn=dsn, keys=KEYS)
    server.database.open()
    server.cache.publish(Snapshot.build(installation_id=uuid4(), revision=3), confirmed_at=0.0)
    try:
        written = server.stores.flags.create(FlagConfig(key="alpha"), Intent(caller=None, action="CreateFlag"))
    finally:
        server.database.close()

    assert written.revision == 1


# --- restore-finish ---------------------------------------------------------------------------------------------------


def test_finishing_a_restore_begins_an_epoch_and_everything_goes_on(
    servers: list[GatekeeperServer], admin: AdminServiceStub, gatekeeper: Gatekeeper, dsn: str
) -> None:
    create(admin, "alpha")

    with evaluating(servers):
        done = gatekeeper("restore-finish")
        assert serve(servers, EPOCH)

    assert (done.exit_code, done.stdout) == (0, f"new epoch: revision {EPOCH}\nerased again: 0\n")
    assert create(admin, "beta") == EPOCH + 1
    assert serve(servers, EPOCH + 1)
    assert [list(evaluate(server, "alpha", "beta").unknown_flag_keys) for server in servers] == [[], []]
    assert chain_is_whole(dsn)


def test_two_restores_of_one_backup_begin_two_epochs(
    servers: list[GatekeeperServer], backups: Backups, gatekeeper: Gatekeeper
) -> None:
    for server in servers:
        server.stop()  # Nobody is there who remembers.
    backup = backups.make()
    assert gatekeeper("restore-finish").stdout.startswith(f"new epoch: revision {EPOCH}\n")

    backups.restore(backup)
    done = gatekeeper("restore-finish", "--known-revision", str(EPOCH + 7))

    assert done.stdout.startswith(f"new epoch: revision {2 * EPOCH}\n")


# --- Who was erased ---------------------------------------------------------------------------------------------------


def test_finishing_a_restore_erases_again_who_was_erased_after_the_backup(
    servers: list[GatekeeperServer], admin: AdminServiceStub, backups: Backups, gatekeeper: Gatekeeper, tmp_path: Path
) -> None:
    dsn = servers[0].database.dsn
    person = f"person-{uuid4().hex}"
    live(admin, person)
    backup = backups.make()
    erased = send(admin, "EraseUser", pb.EraseUserRequest(user_id=person))
    remembered = (tmp_path / "erasures").read_bytes()
    for _ in range(2):  # The second time, the ledger must say the same as the first.
        backups.restore(backup)
        assert traces(dsn, person)

        known = max(server.cache.current().revision for server in servers)
        done = gatekeeper("restore-finish", "--known-revision", str(known))

        assert (done.exit_code, done.stdout.splitlines()[1]) == (0, "erased again: 1")
        assert traces(dsn, person, files=tmp_path) == []
        assert (tmp_path / "erasures").read_bytes() == remembered
        report = send(admin, "VerifyAuditLog", pb.VerifyAuditLogRequest())[-1]
        assert (report.complete, report.redacted_documents) == (True, erased.documents_redacted)
    assert gatekeeper("erasures", "reapply").stdout == "erased again: 0\n"


@pytest.fixture
def server_and_admin(start_server: StartServer, dsn: str, tmp_path: Path) -> Iterator[AdminServiceStub]:
    with ExitStack() as stack:
        server = start_server(data_dir=tmp_path, refresh_interval_s=0.1)
        yield AdminServiceStub(stack.enter_context(connect(server, token=token_for(dsn, Role.ADMIN))))


def test_who_came_back_after_being_erased_stays(
    server_and_admin: AdminServiceStub, gatekeeper: Gatekeeper, dsn: str
) -> None:
    admin = server_and_admin
    for user_id in ("anna", "bob"):
        send(admin, "CreateUser", pb.CreateUserRequest(user=user_with(user_id)))
        send(admin, "EraseUser", pb.EraseUserRequest(user_id=user_id))
    send(admin, "CreateUser", pb.CreateUserRequest(user=user_with("anna")))

    assert gatekeeper("erasures", "reapply").stdout == "erased again: 0\n"
    assert query(dsn, "SELECT user_id FROM subjects") == [("anna",)]


@pytest.mark.parametrize("keeps_the_old_key", [True, False], ids=["kept", "twin: dropped"])
def test_who_was_erased_under_an_old_key_does_not_come_back(
    server_and_admin: AdminServiceStub,
    backups: Backups,
    gatekeeper: Gatekeeper,
    tmp_path: Path,
    dsn: str,
    *,
    keeps_the_old_key: bool,
) -> None:
    admin, old = server_and_admin, (tmp_path / "erasure_key").read_text()
    send(admin, "CreateUser", pb.CreateUserRequest(user=user_with("anna")))
    backup = backups.make()
    send(admin, "EraseUser", pb.EraseUserRequest(user_id="anna"))
    new = "new:" + "n" * 32
    (tmp_path / "erasure_key").write_text(f"{new},{old}" if keeps_the_old_key else new)

    checked = gatekeeper("config", "--check")
    backups.restore(backup)
    done = gatekeeper("restore-finish")

    missing = "key 'erasure' is missing, by whose names alone the erasure ledger knows 1 of the erased people"
    assert [result.exit_code for result in (checked, done)] == ([0, 0] if keeps_the_old_key else [1, 1])
    assert [missing in str(result.exception) + result.stderr for result in (checked, done)] == [
        not keeps_the_old_key
    ] * 2
    assert query(dsn, "SELECT user_id FROM subjects") == ([] if keeps_the_old_key else [("anna",)])
    if keeps_the_old_key:  # She was known again, so her name was made with the new key, which suffices from now on.
        (tmp_path / "erasure_key").write_text(new)
        backups.restore(backup)
        assert gatekeeper("erasures", "reapply").stdout == "erased again: 1\n"
        assert query(dsn, "SELECT user_id FROM subjects") == []


def test_who_cannot_be_erased_again_is_listed_and_the_others_are(
    server_and_admin: AdminServiceStub, backups: Backups, gatekeeper: Gatekeeper, dsn: str
) -> None:
    admin = server_and_admin
    for user_id in ("anna", "bob", "carl"):
        send(admin, "CreateUser", pb.CreateUserRequest(user=user_with(user_id)))
    send(admin, "CreateFlag", pb.CreateFlagRequest(flag=Flag(key="alpha", description="for anna")))
    backup = backups.make()
    send(admin, "DeleteFlag", pb.DeleteFlagRequest(key="alpha"))
    for user_id in ("anna", "bob"):
        send(admin, "EraseUser", pb.EraseUserRequest(user_id=user_id))
    backups.restore(backup)

    done = gatekeeper("erasures", "reapply")

    assert (done.exit_code, done.stdout) == (1, "erased again: 1\n")
    assert "user 'anna' is still named by flag keys alpha" in done.stderr
    assert query(dsn, "SELECT user_id FROM subjects ORDER BY 1") == [("anna",), ("carl",)]
