"""Instances show each other's writes: fresh, in order, and the same to all clients (A2-A6)."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.figures import BUS_ALIVE_P99_S, BUS_DEAD_S, BUSY_S, EVALUATION_DEADLINE_S, ROUNDS
from tests.faults.fleet import Fleet, Instance, fleet
from tests.faults.history import Verdict, check
from tests.faults.load import Editor, Load, at_work, visible_after_s
from tests.faults.postgres import Postgres
from tests.faults.report import Report
from tests.faults.workload import Mix, Workload, recorded_steps
from tests.support.processes import TIMEOUT_S
from tests.support.waiting import eventually

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "bucketing.json").read_text(encoding="utf-8"))

EDITORS = 64
EDITS = 10_000
FEW_EDITS = 1_000
MANY_MIN_REVISIONS = Mix(update=0.3, min_revision=0.6)
ONLY_EDITS = Mix(update=1.0, create_or_delete=0, read=0, min_revision=0, future_revision=0)
SEED = 20_261_125

WRITES = 200
POLL_S = 1.0
POLLING = {"GATEKEEPER_REFRESH_INTERVAL_S": str(POLL_S)}
STALE_AFTER_S = 2.0


def checked(postgres: Postgres, instances: Fleet, *, operations: int, mix: Mix, clients: int = 16) -> Verdict:
    history = Workload(instances, seed=SEED, clients=clients, mix=mix).run(operations)
    return check(history, recorded_steps(postgres.dsn))


def broken(verdict: Verdict) -> set[str]:
    return {violation.promise for violation in verdict.violations}


@pytest.mark.promise("A2")
@pytest.mark.parametrize("share", [1.0, 0.5], ids=["all lost", "half of them lost"])
def test_min_revision_is_honoured_or_refused_when_notifications_are_lost(
    share: float, postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    postgres.lose_notifications(share)
    with fleet(postgres, tmp_path, settings=POLLING) as instances:
        with report.fault("A2", f"{share:.0%} of notifications lost") as row:
            verdict = checked(postgres, instances, operations=3_000, mix=MANY_MIN_REVISIONS)
        row.also = str(verdict)

    assert verdict.violations == []


@pytest.mark.promise("A2")
def test_twin_when_min_revision_is_ignored_answers_are_older_than_asked(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    postgres.lose_notifications(1.0)
    with fleet(postgres, tmp_path, sabotage="any_min_revision", settings=POLLING) as instances:
        verdict = checked(postgres, instances, operations=1_000, mix=MANY_MIN_REVISIONS)

    assert broken(verdict) == {"A2"}
    report.twin("A2", "min_revision", str(verdict))


@pytest.mark.promise("A3", "A5")
def test_racing_editors_leave_one_version_chain_and_instances_converge(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path) as instances:
        with report.fault("A3 A5", f"{EDITORS} racing editors") as row:
            # Each edit is a read and a write.
            verdict = checked(postgres, instances, operations=2 * EDITS, mix=ONLY_EDITS, clients=EDITORS)
            row.recovery_s = instances.recovered_s()
        row.also = str(verdict)
        shown = [instance.evaluate() for instance in instances.instances]

    assert verdict.violations == []
    assert verdict.operations["writes refused"] > 0, "the editors never raced"
    assert all(answer == shown[0] for answer in shown)


@pytest.mark.promise("A3", "A5")
def test_twin_without_etags_editors_replace_what_they_never_saw(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, sabotage="any_etag") as instances:
        verdict = checked(postgres, instances, operations=2 * FEW_EDITS, mix=ONLY_EDITS, clients=EDITORS)

    assert broken(verdict) == {"A3"}
    report.twin("A3", "etags", str(verdict))


def delays_s(instances: Fleet) -> Sequence[float]:
    """How long writes through one instance take to be seen on the others, sorted."""
    writer, *readers = instances.instances
    return sorted(visible_after_s(writer.write, readers[turn % len(readers)]) for turn in range(WRITES))


def p99(sorted_s: Sequence[float]) -> float:
    return sorted_s[int(len(sorted_s) * 0.99) - 1]


@pytest.mark.promise("A4")
def test_writes_are_seen_everywhere_at_once_while_the_bus_is_alive(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, settings=POLLING) as instances, report.fault("A4", "none: bus alive") as row:
        seen = min((delays_s(instances) for _ in range(ROUNDS)), key=p99)
        row.staleness_s = seen[-1]
        row.also = f"p99 {p99(seen) * 1000:.0f} ms over {WRITES} writes, the best of {ROUNDS} rounds"

    assert p99(seen) < BUS_ALIVE_P99_S


@pytest.mark.promise("A4")
def test_twin_instances_that_hear_nothing_lag_behind(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    with fleet(postgres, tmp_path, size=2, sabotage="deaf", settings=POLLING) as instances:
        slowest = max(visible_after_s(instances[0].write, instances[1]) for _ in range(10))

    assert slowest > BUS_ALIVE_P99_S
    report.twin("A4", "announcements", f"a write seen {slowest * 1000:.0f} ms late")


@pytest.mark.promise("A4")
def test_answers_are_at_most_a_poll_and_a_second_old_while_the_bus_is_dead(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    postgres.lose_notifications(1.0)
    with fleet(postgres, tmp_path, settings=POLLING) as instances:
        load = Load(instances.instances)
        with (
            report.fault("A4", "all notifications lost", load),
            at_work(load, Editor(instances[0].admin, load.acknowledged)),
        ):
            assert not eventually(lambda: load.failed, timeout_s=10.0)

    assert load.staleness_s < POLL_S + BUS_DEAD_S


def is_seen_in_time(instances: Fleet) -> bool:
    revision = instances[0].write()
    return eventually(lambda: instances[1].evaluate().revision >= revision, timeout_s=POLL_S + BUS_DEAD_S)


@pytest.mark.promise("A4")
def test_twin_without_polls_answers_stay_old(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    postgres.lose_notifications(1.0)
    with fleet(postgres, tmp_path, size=2, settings={"GATEKEEPER_REFRESH_INTERVAL_S": "60"}) as instances:
        assert not all(is_seen_in_time(instances) for _ in range(3))

    report.twin("A4", "polls", f"a write not seen within {POLL_S + BUS_DEAD_S:.0f} s")


def is_stale(instance: Instance) -> bool:
    return instance.evaluate().stale


@pytest.mark.promise("A4")
def test_answers_say_stale_once_the_database_is_dead_beyond_the_bound(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    settings = {"GATEKEEPER_STALE_AFTER_S": str(STALE_AFTER_S)}
    with fleet(postgres, tmp_path, settings=settings) as instances:
        load = Load(instances.instances)
        with report.fault("A4", f"database dead, bound {STALE_AFTER_S:.0f} s", load) as row, at_work(load):
            postgres.stop()
            assert not any(map(is_stale, instances.instances))
            stale = eventually(lambda: all(map(is_stale, instances.instances)), timeout_s=STALE_AFTER_S + BUSY_S)
            postgres.start()
            row.recovery_s = instances.recovered_s()
            row.also = f"{load.stale} answers said stale"

    assert stale
    assert load.failed == {}


@pytest.mark.promise("A4")
def test_twin_without_the_bound_nothing_says_stale(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    settings = {"GATEKEEPER_STALE_AFTER_S": str(STALE_AFTER_S)}
    with fleet(postgres, tmp_path, size=1, sabotage="never_stale", settings=settings) as instances:
        postgres.stop()
        stale = eventually(lambda: is_stale(instances[0]), timeout_s=STALE_AFTER_S + BUSY_S)
        postgres.start()

    assert not stale
    report.twin("A4", "the staleness bound", f"no answer said stale within {STALE_AFTER_S + BUSY_S:.1f} s")


def slots(instance: Instance) -> list[int]:
    """In which slots an instance places the users of the golden vectors."""
    return [slot(instance, vector["user_id"], vector["flag_key"]) for vector in GOLDEN["vectors"]]


def slot(instance: Instance, user_id: str, flag_key: str) -> int:
    request = EvaluateFlagsRequest(
        context=EvaluationContext(user_id=user_id), flag_keys=[flag_key], include_details=True
    )
    return instance.evaluation.EvaluateFlags(request, timeout=EVALUATION_DEADLINE_S).details[flag_key].bucket


def slots_of_processes(postgres: Postgres, tmp_path: Path, *, sabotage: str = "") -> list[list[int]]:
    """The same, of three processes with hash seeds of their own."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                fleet(postgres, tmp_path / seed, size=1, sabotage=sabotage, settings={"PYTHONHASHSEED": seed})
            )[0]
            for seed in ("0", "1", "4294967295")
        ]
        for key in sorted({vector["flag_key"] for vector in GOLDEN["vectors"]}):
            flag = Flag(key=key, enabled=True, rollout_percentage=50)
            revision = processes[0].admin.CreateFlag(CreateFlagRequest(flag=flag), timeout=TIMEOUT_S).revision
        assert eventually(lambda: all(process.shows(revision) for process in processes))
        return [slots(process) for process in processes]


@pytest.mark.promise("A6")
def test_every_process_gives_the_golden_answers(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    golden = [vector["bucket"] for vector in GOLDEN["vectors"]]

    with report.fault("A6", "none: three processes, three hash seeds") as row:
        found = slots_of_processes(postgres, tmp_path)
        row.also = f"{len(golden)} golden vectors each"

    assert found == [golden] * 3


@pytest.mark.promise("A6")
def test_twin_with_pythons_own_hash_processes_disagree(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    first, *others = slots_of_processes(postgres, tmp_path, sabotage="random_buckets")

    assert all(other != first for other in others)
    report.twin("A6", "the rollout hash", "three processes, three answers")
