"""No fault of the database fails an evaluation; admin calls fail fast and recover."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.faults.figures import ADMIN_FAILS_WITHIN_S, BUSY_S, FAULT_S, RECOVERS_WITHIN_S
from tests.faults.fleet import Fleet, fleet
from tests.faults.load import Acknowledged, Editor, Load, at_work
from tests.faults.postgres import Postgres
from tests.faults.proxy import Mode
from tests.faults.report import Report
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("B1", "B2")

Fault = Callable[[Postgres, Fleet], AbstractContextManager[None]]


@contextmanager
def stopped(postgres: Postgres, instances: Fleet) -> Iterator[None]:
    postgres.stop()
    time.sleep(FAULT_S)
    postgres.start()
    yield


@contextmanager
def hung(postgres: Postgres, instances: Fleet) -> Iterator[None]:
    with postgres.hanging():
        time.sleep(FAULT_S)
    yield


@contextmanager
def killed_again_and_again(postgres: Postgres, instances: Fleet) -> Iterator[None]:
    deadline = time.monotonic() + FAULT_S
    while time.monotonic() < deadline:
        postgres.kill()
        time.sleep(1.0)
    yield


def network(mode: Mode, *, latency_s: float = 0.0) -> Fault:
    @contextmanager
    def broken(postgres: Postgres, instances: Fleet) -> Iterator[None]:
        with instances.network(mode, latency_s=latency_s):
            time.sleep(FAULT_S / 3)
        yield

    return broken


FAULTS: dict[str, Fault] = {
    "database stopped": stopped,
    "database hung (SIGSTOP)": hung,
    "database killed again and again": killed_again_and_again,
    "network blackhole": network(Mode.BLACKHOLE),
    "network half-open": network(Mode.HALF_OPEN),
    "network resets": network(Mode.RESET),
    "network refuses": network(Mode.REFUSE),
    "network late by 20 ms": network(Mode.LATENCY, latency_s=0.02),
}


@pytest.mark.parametrize("name", FAULTS)
def test_no_evaluation_fails_and_admin_calls_fail_fast_and_recover(
    name: str, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path) as instances:
        load = Load(instances.instances)
        editor = Editor(instances[0].admin, load.acknowledged)
        with at_work(load, editor), report.fault("B1 B2", name, load) as row, FAULTS[name](postgres, instances):
            row.recovery_s = instances.recovered_s()
        row.also = f"{editor.refused.total()} edits refused, the slowest edit took {editor.slowest_s:.2f} s"

        assert load.failed == {}, load.complaints
        assert editor.refused.keys() <= {"UNAVAILABLE"}
        assert editor.slowest_s < ADMIN_FAILS_WITHIN_S + BUSY_S
        assert row.recovery_s < RECOVERS_WITHIN_S + BUSY_S


def test_twin_that_asks_the_database_fails_evaluations(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    with fleet(postgres, tmp_path, size=1, sabotage="asks_database") as instances:
        load = Load(instances.instances)
        with at_work(load):
            postgres.stop()
            assert eventually(lambda: load.failed)
            postgres.start()

    report.twin("B1", "evaluation from memory", f"{load.failed.total()} evaluations failed")


def test_twin_without_the_hang_watch_admin_calls_hang(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    with fleet(postgres, tmp_path, size=1, sabotage="no_hang_watch") as instances:
        editor = Editor(instances[0].admin, Acknowledged())
        with at_work(editor), postgres.hanging():
            time.sleep(2 * (ADMIN_FAILS_WITHIN_S + BUSY_S))

    assert editor.slowest_s > ADMIN_FAILS_WITHIN_S + BUSY_S
    report.twin("B2", "the hang watch", f"an edit took {editor.slowest_s:.1f} s")
