"""Instances are replaced, killed and hung under load, and no call of a client that retries fails."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.figures import BUSY_S, EXITS_WITHIN_S, FAULT_S
from tests.faults.fleet import Fleet, fleet
from tests.faults.load import at_work
from tests.faults.postgres import Postgres
from tests.faults.proxy import Mode, proxied
from tests.faults.report import Report
from tests.faults.retrying import CALLS, retrying
from tests.support.processes import TIMEOUT_S
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("C4")

DRAIN_S, GRACE_S = 1.0, 3.0
LEAVING = {"GATEKEEPER_DRAIN_S": str(DRAIN_S), "GATEKEEPER_GRACE_S": str(GRACE_S)}


def roll(instances: Fleet) -> Sequence[float]:
    """Replace each instance by another one on its port, one after the other; how long each took to leave."""
    return [_replace(instances, index) for index in range(len(instances.instances))]


def _replace(instances: Fleet, index: int) -> float:
    began = time.monotonic()
    instances[index].gatekeeper.process.terminate()
    instances[index].gatekeeper.process.wait(TIMEOUT_S)
    left_s = time.monotonic() - began
    instances.restart(index)
    return left_s


def roll_until(enough: Callable[[], bool], instances: Fleet) -> Sequence[float]:
    left_s: list[float] = []
    while not enough():
        left_s += roll(instances)
    return left_s


def test_no_call_fails_while_two_instances_are_replaced_in_turn(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=2, settings=LEAVING) as instances:
        ports = [instance.gatekeeper.port for instance in instances.instances]
        with retrying(ports) as load, report.fault("C4", "two instances replaced in turn", load) as row, at_work(load):
            left_s = roll_until(lambda: load.sent >= CALLS, instances)
            row.also = (
                f"{len(left_s)} replaced, each gone within {max(left_s):.1f} s (drain {DRAIN_S:g}, grace {GRACE_S:g})"
            )

    assert load.failed == {}, load.complaints
    assert max(left_s) < DRAIN_S + GRACE_S + EXITS_WITHIN_S + BUSY_S


@pytest.mark.parametrize("mode", [Mode.BLACKHOLE, Mode.HALF_OPEN, Mode.RESET, Mode.REFUSE], ids=lambda mode: mode.name)
def test_no_call_fails_while_one_of_two_instances_cannot_be_reached(
    mode: Mode, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=2) as instances, ExitStack() as stack:
        networks = [stack.enter_context(proxied(instance.gatekeeper.port)) for instance in instances.instances]
        fault = f"clients' network to one of two instances: {mode.name.lower()}"
        with retrying([network.port for network in networks]) as load, report.fault("C4", fault, load), at_work(load):
            assert eventually(lambda: load.sent > 100)
            with networks[0].broken(mode):
                time.sleep(FAULT_S / 6)
            time.sleep(FAULT_S / 30)

    assert load.failed == {}, load.complaints


def test_twin_when_both_instances_are_replaced_at_once_calls_fail(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=2, settings=LEAVING) as instances:
        ports = [instance.gatekeeper.port for instance in instances.instances]
        with retrying(ports) as load, at_work(load):
            for instance in instances.instances:
                instance.gatekeeper.kill()
            assert eventually(lambda: load.failed)

    report.twin("C4", "one after the other", f"{load.failed.total()} calls failed")


def test_twin_without_goaway_calls_are_cancelled(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    with fleet(postgres, tmp_path, size=2, sabotage="no_drain", settings=LEAVING) as instances:
        ports = [instance.gatekeeper.port for instance in instances.instances]
        with retrying(ports) as load, at_work(load):
            roll_until(lambda: bool(load.failed) or load.sent > 10 * CALLS, instances)

    assert load.failed.keys() == {"CANCELLED"}
    report.twin("C4", "asking clients to go first", f"{load.failed.total()} calls cancelled")
