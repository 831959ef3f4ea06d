"""Two PostgreSQL nodes under real servers: the primary goes, the standby is promoted, everybody follows."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Self

import grpc
import pytest
from structlog.testing import capture_logs

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.cache.refresher import Refresher
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres import servers as servers_module
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.servers import Servers
from gatekeeper_grpc.store.snapshots import loader as snapshots_module
from gatekeeper_grpc.store.snapshots.epochs import Epochs
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from tests.support.processes import TIMEOUT_S
from tests.support.replication import Node, Pair, running_pair
from tests.support.servers import KEYS, connect, settings_for_tests, token_for
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B1", "B2")

BACK_WITHIN_S = 2.0
# Beyond what is promised: the tests share two cores with each other.
MARGIN_S = 4.0
NEXT = "UPDATE revision_head SET revision = revision + 1"


@contextmanager
def instances(pair: Pair, count: int = 2, **settings: object) -> Iterator[list[GatekeeperServer]]:
    """Servers on both nodes of a pair."""
    running: list[GatekeeperServer] = []
    try:
        for _ in range(count):
            server = GatekeeperServer(settings_for_tests(**settings), dsn=pair.dsn, keys=KEYS)
            server.start()
            running.append(server)
        yield running
    finally:
        for server in running:
            server.stop()


class Client:
    """Evaluates without pause, and creates flags when told to, through one instance."""

    def __init__(self, server: GatekeeperServer, token: str) -> None:
        self._channel = connect(server, token=token)
        self._admin = AdminServiceStub(self._channel)
        self._evaluation = EvaluationServiceStub(self._channel)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._evaluate)
        self.evaluations = 0
        self.failures: list[grpc.RpcError] = []
        self.created: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(TIMEOUT_S)
        self._channel.close()

    def _evaluate(self) -> None:
        request = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
        while not self._over.wait(0.005):
            try:
                self._evaluation.EvaluateFlags(request, timeout=TIMEOUT_S)
                self.evaluations += 1
            except grpc.RpcError as error:
                self.failures.append(error)

    def create(self, key: str) -> bool:
        """Create a flag; False when the database was not there for it."""
        request = CreateFlagRequest(flag=Flag(key=key))
        try:
            self.created[key] = self._admin.CreateFlag(request, timeout=TIMEOUT_S).revision
        except grpc.RpcError as error:
            if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ALREADY_EXISTS}:
                return error.code() is grpc.StatusCode.ALREADY_EXISTS
            raise
        return True

    def creates_within(self, key: str) -> float:
        """Try to create a flag until it works; returns how many seconds that took."""
        began_at = time.monotonic()
        assert eventually(lambda: self.create(key))
        return time.monotonic() - began_at


@pytest.mark.parametrize("fault", ["killed", "hanging"])
def test_writes_resume_after_a_promotion_and_no_evaluation_fails(fault: str) -> None:
    with running_pair(synchronous=True) as pair, capture_logs() as logs, instances(pair) as servers:
        token = token_for(pair.primary.dsn, Role.EDITOR)
        with Client(servers[0], token) as one, Client(servers[1], token) as two:
            assert all(one.create(f"before-{number}") for number in range(5))
            old = pair.primary
            with old.hanging() if fault == "hanging" else killed(old):
                refused_after_s = time_of(lambda: two.create("during"))
                pair.fail_over()
                took_s = [one.creates_within("after-one"), two.creates_within("after-two")]
                revision = max(one.created["after-one"], two.created["after-two"])
                assert all(server.cache.wait_for_revision(revision, timeout_s=TIMEOUT_S) for server in servers)
                flags = [set(server.cache.current().flags) for server in servers]

    assert [client.failures for client in (one, two)] == [[], []]
    assert min(one.evaluations, two.evaluations) > 10
    assert refused_after_s < 1.0 + MARGIN_S
    assert max(took_s) < BACK_WITHIN_S + MARGIN_S
    assert all({*one.created, *two.created} <= each for each in flags)
    assert [log["event"] for log in logs].count("database_server_changed") == len(servers)


@contextmanager
def killed(node: Node) -> Iterator[None]:
    node.kill()
    yield


def time_of(act: Callable[[], object]) -> float:
    began_at = time.monotonic()
    act()
    return time.monotonic() - began_at


def test_notifications_arrive_from_the_new_primary_while_the_old_one_hangs() -> None:
    # Nothing but an announcement makes the second instance look.
    with running_pair() as pair, instances(pair, refresh_interval_s=60.0) as servers:
        token = token_for(pair.primary.dsn, Role.EDITOR)
        with Client(servers[0], token) as client, pair.primary.hanging():
            pair.fail_over()
            client.creates_within("first")
            assert eventually(lambda: "first" in servers[1].cache.current().flags)
            client.creates_within("second")

            assert eventually(lambda: "second" in servers[1].cache.current().flags, timeout_s=BACK_WITHIN_S)


def test_every_instance_reloads_in_one_new_epoch_and_reports_lost_commits() -> None:
    with running_pair() as pair, capture_logs() as logs, instances(pair, count=3) as servers:
        token = token_for(pair.primary.dsn, Role.EDITOR)
        with Client(servers[0], token) as client:
            assert all(client.create(f"kept-{number}") for number in range(2))
            pair.catch_up()
            pair.standby.cut_off()
            assert all(client.create(f"lost-{number}") for number in range(3))
            assert all(server.cache.wait_for_revision(5, timeout_s=TIMEOUT_S) for server in servers)
            pair.primary.kill()
            pair.fail_over()
            in_epoch = [server.cache.wait_for_revision(REVISIONS_PER_EPOCH, timeout_s=TIMEOUT_S) for server in servers]
            assert eventually(lambda: [log["event"] for log in logs].count("commits_lost") == len(servers))
            flags = [sorted(server.cache.current().flags) for server in servers]

    assert in_epoch == [True] * 3
    assert flags == [["kept-0", "kept-1"]] * 3
    assert client.failures == []
    lost = [(log["lost_from_revision"], log["lost_to_revision"]) for log in logs if log["event"] == "commits_lost"]
    assert lost == [(3, 5)] * 3
    assert [log["event"] for log in logs].count("epoch_begun") == 1


def served_after_others_wrote_first(pair: Pair) -> Snapshot:
    """A standby that lacks a commit is promoted, and goes beyond it before the instance that served it looks again."""
    with closing(Database(pair.dsn)) as database:
        database.open()
        ledger, store = MutationRunner(database, KEYS.data), SnapshotStore(database)
        create(ledger, database, "kept")
        pair.catch_up()
        pair.standby.cut_off()
        create(ledger, database, "lost")
        cache = SnapshotCache(stale_after_s=1.0, max_waiters=1)
        cache.publish(store.load(), confirmed_at=0.0)
        pair.primary.kill()
        pair.fail_over()
        for key in ("instead", "beyond"):
            assert eventually(partial(create, ledger, database, key))
        refresher = Refresher(
            cache,
            store,
            [],
            report_loss=Epochs(ledger).start_if_lost,
            poll_interval_s=TIMEOUT_S,
            reload_interval_s=TIMEOUT_S,
        )
        refresher._refresh()
        return cache.current()


def create(ledger: MutationRunner, database: Database, key: str) -> bool:
    with suppress(Unavailable):
        FlagStore(database, ledger).create(FlagConfig(key=key), Intent(caller=None, action="CreateFlag"))
        return True
    return False


def test_a_reissued_revision_is_not_taken_for_the_lost_one() -> None:
    with running_pair() as pair, capture_logs() as logs:
        served = served_after_others_wrote_first(pair)

    assert (set(served.flags), served.revision) == ({"kept", "instead", "beyond"}, REVISIONS_PER_EPOCH)
    assert [log["event"] for log in logs].count("history_lost") == 1


def test_twin_without_comparing_histories_lost_commits_stay_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots_module, "_check_history", lambda *_: None)
    with running_pair() as pair:
        served = served_after_others_wrote_first(pair)

    assert (set(served.flags), served.revision) == ({"kept", "lost", "beyond"}, 3)


def moves_on_from_a_fenced_primary(database: Database, pair: Pair, *, within_s: float) -> bool:
    """Whether writes reach the new primary after the old one, still alive, was told to take none."""
    assert writes(database)
    pair.catch_up()
    pair.primary.run("ALTER SYSTEM SET default_transaction_read_only = on")
    pair.primary.run("SELECT pg_reload_conf()")
    pair.fail_over()
    return eventually(lambda: writes(database), timeout_s=within_s)


def test_a_primary_that_takes_writes_no_more_is_left_for_the_one_that_does() -> None:
    with running_pair() as pair, closing(Database(pair.dsn)) as database:
        database.open()

        assert moves_on_from_a_fenced_primary(database, pair, within_s=TIMEOUT_S)
        assert pair.primary.run("SELECT revision FROM revision_head") == [(2,)]


def test_twin_without_discarding_connections_writes_stay_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Database, "_renew", lambda _database: None)
    with running_pair() as pair, closing(Database(pair.dsn, pool_size=1)) as database:
        database.open()

        assert not moves_on_from_a_fenced_primary(database, pair, within_s=BACK_WITHIN_S)


def writes(database: Database) -> bool:
    try:
        with database.write() as conn:
            conn.execute(NEXT)
    except Unavailable:
        return False
    return True


# --- Finding the server -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as pair:
        yield pair


def test_of_several_servers_the_primary_is_found_in_any_position(pair: Pair) -> None:
    host, port = "127.0.0.1,127.0.0.1", f"{pair.standby.port},{pair.primary.port}"
    servers = Servers(f"host={host} port={port} user=gatekeeper dbname=postgres")

    with closing(servers.connect()) as conn:
        assert conn.info.port == pair.primary.port


def test_a_dsn_that_says_what_suits_is_right(pair: Pair) -> None:
    host, port = "127.0.0.1,127.0.0.1", f"{pair.primary.port},{pair.standby.port}"
    dsn = f"host={host} port={port} user=gatekeeper dbname=postgres target_session_attrs=standby"

    with closing(Servers(dsn).connect()) as conn:
        assert conn.info.port == pair.standby.port


def test_one_server_alone_is_used_whatever_it_is(pair: Pair) -> None:
    with closing(Servers(pair.standby.dsn).connect()) as conn:
        assert conn.info.port == pair.standby.port


def connected_after_s(first: Node, second: Node) -> float:
    """How long it takes to connect to the second server, while the first one hangs."""
    servers = Servers(f"postgresql://gatekeeper@{first.address},{second.address}/postgres")
    with first.hanging():
        began_at = time.monotonic()
        servers.connect().close()
        return time.monotonic() - began_at


def test_a_hung_server_delays_a_connection_to_another_only_briefly(pair: Pair) -> None:
    assert connected_after_s(pair.standby, pair.primary) < servers_module._CONNECT_TIMEOUT_S


def test_twin_without_parallel_attempts_no_server_is_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_module, "_HEAD_START_S", TIMEOUT_S)

    with pytest.raises(Exception, match="did not answer in time"):
        connected_after_s(pair.standby, pair.primary)
