"""What tests of failover stand on: two real nodes do what the helper says of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.processes import TIMEOUT_S
from tests.support.replication import Node, Pair, running_pair
from tests.support.waiting import eventually

NEXT = "UPDATE revision_head SET revision = revision + 1"
WAITS_FOR_STANDBY = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
HEAD = "SELECT revision FROM revision_head"


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_pair() as pair:
        yield pair


def head(node: Node) -> int:
    ((revision,),) = node.run(HEAD)
    assert isinstance(revision, int)
    return revision


def test_a_standby_follows_lags_and_catches_up(pair: Pair) -> None:
    pair.primary.run(NEXT)
    pair.catch_up()
    with pair.standby.paused_replay():
        pair.primary.run(NEXT)
        assert (head(pair.primary), head(pair.standby)) == (2, 1)
    pair.catch_up()

    assert head(pair.standby) == 2


def test_a_standby_cut_off_lacks_commits_and_the_old_primary_can_rejoin(pair: Pair) -> None:
    pair.standby.cut_off()
    pair.primary.run(NEXT)
    old = pair.primary
    old.kill()
    pair.fail_over()
    pair.primary.run(NEXT)
    pair.primary.run(NEXT)
    pair.rejoin()
    pair.catch_up()

    assert pair.standby is old
    assert (head(pair.primary), head(pair.standby)) == (2, 2)


def test_a_node_that_hangs_answers_nobody_until_it_goes_on(pair: Pair) -> None:
    with pair.primary.hanging():
        assert not pair.primary.answers()

    assert eventually(pair.primary.answers)


def test_with_synchronous_replication_a_commit_waits_for_the_standby() -> None:
    with running_pair(synchronous=True) as pair, ThreadPoolExecutor(1) as pool:
        pair.primary.run(NEXT)
        pair.standby.kill()
        writing = pool.submit(pair.primary.run, NEXT)
        assert eventually(lambda: pair.primary.run(WAITS_FOR_STANDBY) == [(1,)])
        pair.standby.start()

        assert writing.result(timeout=TIMEOUT_S) == []
