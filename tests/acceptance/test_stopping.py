"""SIGTERM and SIGINT: health first, then no new calls, then the calls in flight, and out in time whatever hangs (C4)."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import grpc
import psycopg
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from gatekeeper.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper.v1.evaluation_pb2 import EvaluationContext
from gatekeeper.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper.v1.flag_pb2 import Flag
from tests.acceptance.processes import PATIENCE_S, Gatekeeper, eventually, postgres_pids, serving

DRAIN_S = 2.0
GRACE_S = 2.0
# Beyond the drain and grace periods.
MARGIN_S = 1.0

ALICE = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))


@contextmanager
def head_locked(dsn: str) -> Iterator[psycopg.Connection]:
    """Let every mutation wait for the length of the block."""
    with psycopg.connect(dsn) as holder:
        holder.execute("SELECT FROM revision_head FOR UPDATE")
        yield holder


def waits_for_a_lock(dsn: str) -> bool:
    with psycopg.connect(dsn) as conn:
        return bool(conn.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone())


def is_refused(evaluation: EvaluationServiceStub) -> bool:
    try:
        evaluation.EvaluateFlags(ALICE, timeout=PATIENCE_S)
    except grpc.RpcError as refused:
        assert refused.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined] # grpcio's errors are calls.
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_announced_by_health_while_calls_are_still_served_and_ends_everything(
    data_dir: Path, number: signal.Signals
) -> None:
    with serving(data_dir, GATEKEEPER_DRAIN_S=str(DRAIN_S)) as gatekeeper, gatekeeper.channel() as channel:
        health = HealthStub(channel).Watch(HealthCheckRequest(), timeout=PATIENCE_S)
        before = next(health).status
        gatekeeper.process.send_signal(number)
        after = next(health).status
        still_served = EvaluationServiceStub(channel).EvaluateFlags(ALICE, timeout=PATIENCE_S)

        assert (before, after) == (HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING)
        assert still_served.revision == 1
        assert gatekeeper.process.wait(PATIENCE_S) == 0
        assert postgres_pids(data_dir) == []


def test_call_in_flight_finishes_while_new_calls_are_unavailable(gatekeeper: Gatekeeper) -> None:
    with gatekeeper.admin() as admin, gatekeeper.channel() as other, head_locked(gatekeeper.dsn) as holder:
        in_flight = admin.CreateFlag.future(CreateFlagRequest(flag=Flag(key="slow")), timeout=PATIENCE_S)
        assert eventually(lambda: waits_for_a_lock(gatekeeper.dsn))
        gatekeeper.process.terminate()
        assert eventually(lambda: is_refused(EvaluationServiceStub(other)))
        holder.rollback()

        assert in_flight.result().revision == 2
        assert gatekeeper.process.wait(PATIENCE_S) == 0


def test_stream_that_never_ends_is_cut_off_when_the_grace_period_is_over(data_dir: Path) -> None:
    limits = {"GATEKEEPER_GRACE_S": str(GRACE_S), "GATEKEEPER_REFRESH_INTERVAL_S": "1"}
    requests: SimpleQueue[BulkEvaluateFlagsRequest] = SimpleQueue()
    with serving(data_dir, **limits) as gatekeeper, gatekeeper.channel() as channel:
        answers = EvaluationServiceStub(channel).BulkEvaluateFlags(iter(requests.get, None))
        requests.put(BulkEvaluateFlagsRequest())
        next(answers)
        gatekeeper.process.terminate()

        assert gatekeeper.process.wait(GRACE_S + MARGIN_S) == 0
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE|CANCELLED"):
            list(answers)
        assert postgres_pids(data_dir) == []
