"""What the fault tests count and print is what happened."""

import time
from collections.abc import Iterator

import grpc

from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsResponse
from tests.faults.load import Acknowledged, Load, at_work
from tests.faults.report import Report
from tests.support.waiting import eventually


class Refused(grpc.RpcError):
    """An error as a call raises it."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "away"


class Server:
    """Answers with what it is told to, and fails in between."""

    def __init__(self, *revisions: int) -> None:
        self._revisions: Iterator[int] = iter(revisions)

    def evaluate(self) -> EvaluateFlagsResponse:
        revision = next(self._revisions, 0)
        if not revision:
            raise Refused
        return EvaluateFlagsResponse(revision=revision, stale=revision == 1)


def test_staleness_is_counted_from_the_first_newer_acknowledged_revision() -> None:
    acknowledged = Acknowledged()
    for revision in (5, 6, 9):
        acknowledged.add(revision)
    later = time.monotonic() + 10.0

    assert acknowledged.staleness_s(9, asked_at=later) == 0.0
    assert 9.0 < acknowledged.staleness_s(8, asked_at=later) <= acknowledged.staleness_s(4, asked_at=later) < 11.0
    assert acknowledged.staleness_s(4, asked_at=later - 20.0) == 0.0


def test_a_load_counts_what_was_answered_what_failed_and_what_was_stale() -> None:
    load = Load([Server(1, 2), Server(3)], per_s=1_000)
    load.acknowledged.add(2)

    with at_work(load):
        assert eventually(lambda: load.sent > 10)

    assert (len(load.latencies_s), load.stale) == (3, 1)
    assert load.failed == {"UNAVAILABLE": load.sent - 3}
    assert load.complaints[0].startswith("UNAVAILABLE after 0.00 s: away")
    assert load.staleness_s > 0


def test_the_report_has_a_row_for_each_fault_and_twin_by_promise() -> None:
    report = Report()
    with report.fault("B1", "database stopped", Load([])) as row:
        row.recovery_s = 0.25
    with report.fault("A1", "server killed") as row:
        row.also = "3 writes"
    report.twin("A1", "one transaction", "7 writes without an entry")

    lines = report.markdown().splitlines()

    assert [line for line in lines if line.startswith(("| A1", "| B1"))] == [
        "| A1 | server killed | 0 ms |  |  |  |  | 3 writes |",
        "| B1 | database stopped | 0 ms | 0 | 0 | 0 ms | 250 ms |  |",
        "| A1 | one transaction | 7 writes without an entry |",
    ]
