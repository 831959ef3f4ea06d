"""What concurrent clients saw under faults is a history that promises A1-A6 allow."""

import threading
import time
from pathlib import Path

import pytest

from tests.faults.chaos import Chaos
from tests.faults.fleet import Fleet, fleet
from tests.faults.history import Verdict, check
from tests.faults.load import at_work
from tests.faults.postgres import Postgres
from tests.faults.replicated import replicated
from tests.faults.report import Report
from tests.faults.workload import Workload, recorded_steps
from tests.support.replication import Pair
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("A1", "A2", "A3", "A4", "A5", "A6")

OPERATIONS = 10_000
FEWER = 3_000
BEFORE_S, UNTIL_PROMOTED_S = 3.0, 2.0
SEED = 20_261_125
# What makes loads overtake each other.
RELOADING = {"GATEKEEPER_RELOAD_INTERVAL_S": "0.05"}


def verdict_on(postgres: Postgres, instances: Fleet) -> Verdict:
    """Let clients work, and check what they recorded."""
    history = Workload(instances, seed=SEED).run(FEWER)
    return check(history, recorded_steps(postgres.dsn))


def test_no_promise_is_broken_under_mixed_faults(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    postgres.lose_notifications(0.3)
    with fleet(postgres, tmp_path, settings=RELOADING) as instances:
        chaos = Chaos(postgres, instances, seed=SEED)
        with report.fault("A1-A6", "mixed faults") as row:
            with at_work(chaos):
                history = Workload(instances, seed=SEED).run(OPERATIONS)
            assert eventually(postgres.answers)
            verdict = check(history, recorded_steps(postgres.dsn))
        row.also = f"{verdict}; {chaos}; 3 in 10 notifications lost"

    assert verdict.violations == []


class FailOver:
    """Kills the primary while clients work, and promotes its standby a little later."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._thread = threading.Thread(target=self._fail_over, name="fail-over")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Wait until the standby takes writes."""
        self._thread.join()

    def _fail_over(self) -> None:
        time.sleep(BEFORE_S)
        self._pair.primary.kill()
        time.sleep(UNTIL_PROMOTED_S)
        self._pair.fail_over()


def test_no_promise_is_broken_over_a_failover(tmp_path: Path, report: Report) -> None:
    with replicated(tmp_path, synchronous=True) as (pair, instances):
        with report.fault("A1-A6", "synchronous failover") as row, at_work(FailOver(pair)):
            history = Workload(instances, seed=SEED).run(FEWER)
        verdict = check(history, recorded_steps(pair.primary.dsn))
        row.also = str(verdict)

    assert verdict.violations == []
    assert verdict.operations["writes unknown"] > 0, "nobody noticed the failover"


def test_loads_that_overtake_each_other_are_harmless(postgres: Postgres, tmp_path: Path) -> None:
    with fleet(postgres, tmp_path, sabotage="slow_loads", settings=RELOADING) as instances:
        assert verdict_on(postgres, instances).violations == []


def test_twin_without_the_revision_guard_instances_go_back(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    with fleet(postgres, tmp_path, sabotage="no_revision_guard", settings=RELOADING) as instances:
        verdict = verdict_on(postgres, instances)

    assert "A5" in {violation.promise for violation in verdict.violations}
    report.twin("A5", "the revision guard", str(verdict))
