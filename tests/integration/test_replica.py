"""Whole loads from a read replica that lags, hangs or is away: never older than the primary, and proof of nothing."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots.epochs import Epochs
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from gatekeeper_grpc.store.snapshots.replica import ReplicaFirst
from tests.support.processes import TIMEOUT_S
from tests.support.replication import Pair, running_pair
from tests.support.servers import KEYS, settings_for_tests
from tests.support.waiting import eventually

HUNG_AFTER_S = 0.75
MARGIN_S = 4.0


class CountedStore(SnapshotStore):
    """Counts the whole loads."""

    loads = 0

    def load(self, *, sharing: Snapshot | None = None, paced: bool = True) -> Snapshot:
        self.loads += 1
        return super().load(sharing=sharing, paced=paced)


class House:
    """A primary and its replica, with a store on each."""

    def __init__(self, pair: Pair, primary: Database, replica: Database) -> None:
        self.pair = pair
        self.database = primary
        self.primary = CountedStore(primary)
        self.replica = CountedStore(replica)
        self.source = ReplicaFirst(self.primary, self.replica)
        self.ledger = MutationRunner(primary, KEYS.data)

    def create(self, key: str) -> int:
        intent = Intent(caller=None, action="CreateFlag")
        return FlagStore(self.database, self.ledger).create(FlagConfig(key=key), intent).revision

    def loads(self) -> tuple[int, int]:
        """Whole loads so far: from the primary, from the replica."""
        return self.primary.loads, self.replica.loads


@pytest.fixture
def house() -> Iterator[House]:
    with ExitStack() as stack:
        pair = stack.enter_context(running_pair())
        primary = stack.enter_context(closing(Database(pair.primary.dsn, hung_after_s=HUNG_AFTER_S)))
        replica = stack.enter_context(closing(Database(pair.standby.dsn, hung_after_s=HUNG_AFTER_S, for_writing=False)))
        primary.open()
        replica.open()
        house = House(pair, primary, replica)
        house.create("first")
        pair.catch_up()
        yield house


def test_what_a_lagging_replica_lacks_comes_from_the_primary(house: House) -> None:
    with house.pair.standby.paused_replay():
        revision = house.create("second")
        loaded = house.source.load()

    assert (loaded.revision, set(loaded.flags)) == (revision, {"first", "second"})
    assert house.loads() == (0, 1)


def test_twin_the_replica_alone_is_older(house: House) -> None:
    with house.pair.standby.paused_replay():
        revision = house.create("second")

        assert house.replica.load().revision < revision


def test_of_a_replica_that_lags_across_an_epoch_nothing_is_used(house: House) -> None:
    with house.pair.standby.paused_replay():
        Epochs(house.ledger).start_after_restore()
        loaded = house.source.load()

    assert loaded.revision == REVISIONS_PER_EPOCH
    assert house.loads() == (1, 1)


def test_beyond_the_change_log_everything_is_loaded_through_the_replica(house: House) -> None:
    old = Snapshot.build(installation_id=house.primary.load().installation_id, revision=0)
    house.pair.primary.run("DELETE FROM change_log")

    assert house.source.load_since(old).revision == 1
    assert house.loads() == (1, 1)


def is_used_again(house: House) -> bool:
    before = house.primary.loads
    house.source.load()
    return house.primary.loads == before


def test_an_absent_replica_is_logged_once_and_the_primary_serves_alone(house: House) -> None:
    house.pair.standby.kill()
    with capture_logs() as logs:
        assert [house.source.load().revision for _ in range(2)] == [1, 1]
        house.pair.standby.start()
        assert eventually(lambda: is_used_again(house))

    events = [log["event"] for log in logs if log["event"] != "database_error"]
    assert events == ["replica_unreachable", "replica_reachable"]


def test_a_replica_that_hangs_holds_up_a_load_for_a_moment_only(house: House) -> None:
    with house.pair.standby.hanging():
        began_at = time.monotonic()
        assert house.source.load().revision == 1

        assert time.monotonic() - began_at < 1.0 + MARGIN_S


def test_without_the_primary_the_source_vouches_for_nothing(house: House) -> None:
    house.pair.primary.kill()

    with pytest.raises(Unavailable):
        house.source.load()
    assert house.loads() == (0, 0)


# --- A whole instance -------------------------------------------------------------------------------------------------


def serving(stack: ExitStack, pair: Pair, **settings: object) -> GatekeeperServer:
    server = GatekeeperServer(
        settings_for_tests(READ_DATABASE_URL=pair.standby.dsn, **settings), dsn=pair.primary.dsn, keys=KEYS
    )
    server.start()
    stack.callback(server.stop)
    return server


def test_a_lagging_replica_never_takes_an_instance_back_while_it_reloads(house: House) -> None:
    history = []
    with ExitStack() as stack, house.pair.standby.paused_replay():
        server = serving(stack, house.pair, reload_interval_s=0.01)
        for number in range(50):
            revision = house.create(f"flag-{number}")
            server.cache.at_least(revision)
            history.append(server.cache.current().revision)

    assert history == sorted(history)
    assert history[-1] == 51


def test_without_a_primary_the_replica_is_served_as_unconfirmed(
    house: House,
) -> None:
    with ExitStack() as stack:
        server = serving(stack, house.pair)
        assert eventually(lambda: server.cache.unconfirmed_s() < 1.0)
        with house.pair.standby.paused_replay():
            house.create("late")
            # It hears nothing of that before the primary is gone.
            server.cache._snapshot = house.replica.load()
            house.pair.primary.kill()
        assert eventually(lambda: "late" in server.cache.current().flags)
        with pytest.raises(Unavailable):
            server.cache.at_least(99)
        unconfirmed_s = server.cache.unconfirmed_s()
        time.sleep(0.2)

        assert server.cache.unconfirmed_s() > unconfirmed_s
        house.pair.primary.start()
        assert eventually(lambda: server.cache.unconfirmed_s() < unconfirmed_s, timeout_s=TIMEOUT_S)
