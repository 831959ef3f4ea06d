"""The primary is lost and its standby promoted: no evaluation fails, and lost commits are detected."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from tests.faults.figures import BUSY_S, FAULT_S, RECOVERS_WITHIN_S
from tests.faults.fleet import Fleet, Instance
from tests.faults.load import Load, Writer, at_work
from tests.faults.replicated import replicated
from tests.faults.report import Report, Row
from tests.support.records import chained_entries, flag_revisions
from tests.support.replication import Node, Pair
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B1", "A1")

# Of the fault, how long the primary is gone before somebody promotes the standby.
UNNOTICED_S = FAULT_S / 2
WRITTEN_BEFORE = 20
LOST = 5
WAITS_FOR_STANDBY_S = 3.0
SAID_AT_MOST = 2


@contextmanager
def killed(node: Node) -> Iterator[None]:
    node.kill()
    yield


DEATHS: dict[str, Callable[[Node], AbstractContextManager[None]]] = {"killed": killed, "hung": Node.hanging}


@pytest.mark.parametrize("death", DEATHS)
def test_a_failover_fails_no_evaluation_and_loses_nothing_acknowledged(
    death: str, tmp_path: Path, report: Report
) -> None:
    with replicated(tmp_path, synchronous=True) as (pair, instances):
        load = Load(instances.instances)
        writer = Writer(lambda: instances[0].admin, "writer")
        with at_work(load, writer), report.fault("B1 A1", f"primary {death}, standby promoted", load) as row:
            assert eventually(lambda: len(writer.acknowledged) >= WRITTEN_BEFORE)
            with DEATHS[death](pair.primary):
                time.sleep(UNNOTICED_S)
                pair.fail_over()
                row.recovery_s = instances.recovered_s()
                time.sleep(UNNOTICED_S)
        row.also = f"{len(writer.acknowledged)} writes acknowledged, {writer.refused.total()} refused"
        kept = flag_revisions(pair.primary.dsn)
        entries = chained_entries(pair.primary.dsn)
        repeated = [said_again_and_again(instance) for instance in instances.instances]

    assert load.failed == {}, load.complaints
    assert writer.acknowledged.items() <= kept.items()
    assert kept == {entry.resource_key: entry.revision for entry in entries}
    assert row.recovery_s < RECOVERS_WITHIN_S + BUSY_S
    assert repeated == [[]] * len(repeated)


def said_again_and_again(instance: Instance) -> list[str]:
    """Log lines, apart from those of calls, that came more than twice: a state changes there and back."""
    entries = [json.loads(line) for line in instance.gatekeeper.log.text().splitlines() if line.startswith("{")]
    states = [entry for entry in entries if entry["event"] != "rpc"]
    said = Counter(json.dumps({name: entry[name] for name in entry if name != "timestamp"}) for entry in states)
    return [line for line, times in said.items() if times > SAID_AT_MOST]


def lose_commits(pair: Pair, instances: Fleet) -> int:
    """Fail over to a standby that lacks the last commits; returns the last revision that was served."""
    for _ in range(WRITTEN_BEFORE):
        instances[0].write()
    pair.catch_up()
    pair.standby.cut_off()
    served = [instances[0].write() for _ in range(LOST)][-1]
    assert eventually(lambda: all(instance.shows(served) for instance in instances.instances))
    pair.primary.kill()
    pair.fail_over()
    return served


def fail_over_and_lose(pair: Pair, instances: Fleet, row: Row) -> int:
    served = lose_commits(pair, instances)
    row.recovery_s = instances.recovered_s()
    return served


def test_every_instance_notices_lost_commits_and_says_which(tmp_path: Path, report: Report) -> None:
    with replicated(tmp_path, synchronous=False) as (pair, instances):
        load = Load(instances.instances)
        with at_work(load), report.fault("B1", "asynchronous standby promoted, commits lost", load) as row:
            served = fail_over_and_lose(pair, instances, row)
        told = [instance.gatekeeper.logged("commits_lost") for instance in instances.instances]
        shown = [instance.evaluate() for instance in instances.instances]
        row.also = f"{LOST} commits lost, noticed by {len(told)} instances"
        report.twin("A1", "synchronous replication", f"{LOST} acknowledged writes lost, and all instances say so")

    assert load.failed == {}, load.complaints
    assert {entry["last_served_revision"] for entry in told} == {served}
    assert all(answer.revision > REVISIONS_PER_EPOCH and not answer.stale for answer in shown)
    assert all(answer.flags == shown[0].flags for answer in shown)


def test_twin_that_cannot_tell_loss_serves_flags_that_are_gone(tmp_path: Path, report: Report) -> None:
    with replicated(tmp_path, synchronous=False, sabotage="no_loss_detection") as (pair, instances):
        lose_commits(pair, instances)
        time.sleep(RECOVERS_WITHIN_S + BUSY_S)
        served = set(instances[0].evaluate().flags)
        gone = served - flag_revisions(pair.primary.dsn).keys()

    assert len(gone) == LOST
    report.twin("B1", "epochs after lost commits", f"{len(gone)} flags served that the database does not have")


def test_no_write_is_acknowledged_before_the_standby_has_it(tmp_path: Path, report: Report) -> None:
    impatient = {"GATEKEEPER_DB_STATEMENT_TIMEOUT_S": "1"}
    with replicated(tmp_path, synchronous=True, settings=impatient) as (pair, instances):
        load = Load(instances.instances)
        with at_work(load), report.fault("A1", "synchronous standby hung", load) as row:
            with pair.standby.hanging():
                acknowledged = [
                    instance.accepts_writes(within_s=WAITS_FOR_STANDBY_S) for instance in instances.instances
                ]
            row.recovery_s = instances.recovered_s()
        row.also = f"{sum(acknowledged)} writes acknowledged without it"

    assert not any(acknowledged)
    assert load.failed == {}, load.complaints
