"""Four workers on one port: all show a change at once, and the loss of one fails no call of a client that retries."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.faults.figures import BUS_ALIVE_P99_S, EVALUATION_DEADLINE_S, ROUNDS
from tests.faults.fleet import ALICE, Instance, fleet
from tests.faults.load import Load, at_work
from tests.faults.postgres import Postgres
from tests.faults.report import Report
from tests.faults.retrying import CALLS, OneTry, retrying
from tests.support.processes import TIMEOUT_S
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("C4")

WORKERS = 4
FOUR = {"GATEKEEPER_WORKERS": str(WORKERS)}
# Enough that the kernel gives some to every worker.
CONNECTIONS = 8 * WORKERS
WRITES = 100


@pytest.fixture
def workers(postgres: Postgres, tmp_path: Path) -> Iterator[Instance]:
    """A supervisor and its workers."""
    with fleet(postgres, tmp_path, size=1, settings=FOUR) as started:
        assert eventually(lambda: len(pids(started[0])) == WORKERS)
        yield started[0]


def pids(workers: Instance) -> list[int]:
    """The workers' processes."""
    supervisor = workers.gatekeeper.process.pid
    return [int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]


@contextmanager
def connections(workers: Instance) -> Iterator[Sequence[EvaluationServiceStub]]:
    with ExitStack() as stack:
        channels = [stack.enter_context(workers.gatekeeper.channel()) for _ in range(CONNECTIONS)]
        yield [EvaluationServiceStub(channel) for channel in channels]


def seen_everywhere_after_s(write: Callable[[], int], readers: Sequence[EvaluationServiceStub]) -> float:
    revision, acknowledged_at = write(), time.monotonic()
    for reader in readers:
        while reader.EvaluateFlags(ALICE, timeout=EVALUATION_DEADLINE_S).revision < revision:
            time.sleep(0.001)
    return time.monotonic() - acknowledged_at


def test_a_change_is_on_all_workers_at_once(workers: Instance, report: Report) -> None:
    with connections(workers) as readers, report.fault("A4", f"none: {WORKERS} workers on one port") as row:
        rounds = [sorted(seen_everywhere_after_s(workers.write, readers) for _ in range(WRITES)) for _ in range(ROUNDS)]
        p99_s, row.staleness_s = min((seen[-2], seen[-1]) for seen in rounds)
        row.also = f"p99 {p99_s * 1000:.0f} ms until all {CONNECTIONS} connections show it, the best of {ROUNDS} rounds"

    assert p99_s < BUS_ALIVE_P99_S


@pytest.mark.parametrize(("number", "fault"), [(signal.SIGKILL, "kill -9"), (signal.SIGSTOP, "SIGSTOP")])
def test_a_worker_that_dies_or_hangs_fails_no_call_and_is_replaced(
    number: signal.Signals, fault: str, workers: Instance, report: Report
) -> None:
    with (
        retrying([workers.gatekeeper.port]) as load,
        report.fault("C4", f"{fault} of one of {WORKERS} workers", load) as row,
    ):
        with at_work(load):
            assert eventually(lambda: load.sent > 1_000)
            before, began = set(pids(workers)), time.monotonic()
            os.kill(min(before), number)
            assert eventually(lambda: min(before) not in pids(workers) and len(pids(workers)) == WORKERS)
            row.recovery_s = time.monotonic() - began
            enough = load.sent + 1_000
            assert eventually(lambda: load.sent > enough)
        row.also = "the recovery is until it was replaced"

    assert load.failed == {}, load.complaints


def test_a_roll_fails_no_call(workers: Instance, report: Report) -> None:
    rolls = 0
    with (
        retrying([workers.gatekeeper.port]) as load,
        report.fault("C4", f"SIGHUP roll of {WORKERS} workers", load) as row,
    ):
        with at_work(load):
            while load.sent < CALLS:
                roll(workers)
                rolls += 1
        row.also = f"{rolls} rolls"

    assert load.failed == {}, load.complaints


def roll(workers: Instance) -> None:
    """Have all workers replaced; returns when they are."""
    before = set(pids(workers))
    workers.gatekeeper.process.send_signal(signal.SIGHUP)
    replaced = eventually(
        lambda: not before & set(pids(workers)) and len(pids(workers)) == WORKERS, timeout_s=4 * TIMEOUT_S
    )
    assert replaced


def test_twin_a_client_that_does_not_try_again_sees_a_worker_die(workers: Instance, report: Report) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(OneTry(workers.gatekeeper.port))) for _ in range(2 * WORKERS)]
        load = Load(clients, per_s=100)
        with at_work(load):
            for _ in range(20):
                os.kill(min(pids(workers)), signal.SIGKILL)
                if eventually(lambda: load.failed, timeout_s=1.0):
                    break

    assert load.failed
    report.twin("C4", "clients that try again", f"{load.failed.total()} calls failed when a worker was killed")
