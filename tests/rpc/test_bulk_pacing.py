"""What a bulk message may cost: its CPU is bounded, and a client that has left costs none."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import pytest

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.domain.flag import FlagConfig
from gatekeeper_grpc.domain.selection import Selection
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.draws.python import PythonDraws
from gatekeeper_grpc.servicers import pacing
from gatekeeper_grpc.servicers.pacing import Pace
from gatekeeper_grpc.testing import EvaluationServer, serve
from tests.support.clients import TIMEOUT_S, Refusal, refusal_of
from tests.support.servers import StartServer, connect
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("F6")

FULL_MESSAGE = BulkEvaluateFlagsRequest(contexts=[EvaluationContext(user_id=f"user-{n}") for n in range(5_000)])
# Each one that is added costs as much as there are already.
MANY_FLAGS = 1_000


class Evaluations:
    """Counts the users that are evaluated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        decide_all = Snapshot.decide_all

        def counted(snapshot: Snapshot, selection: Selection, user_ids: Sequence[str], users: Sequence[bytes]) -> Any:
            self.count += len(users)
            return decide_all(snapshot, selection, user_ids, users)

        monkeypatch.setattr(Snapshot, "decide_all", counted)

    def have_ended(self) -> bool:
        before = self.count
        return not eventually(lambda: self.count > before, timeout_s=0.5)


@pytest.fixture
def server() -> Iterator[EvaluationServer]:
    """A server that takes half a second for a full message, whose answer is one message."""
    with serve(()) as server:
        for number in range(150):
            server.set_flag(FlagConfig(key=f"flag-{number}", enabled=True, rollout_percentage=50))
        yield server


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Evaluations:
    return Evaluations(monkeypatch)


def test_a_client_that_leaves_ends_the_evaluation(server: EvaluationServer, evaluations: Evaluations) -> None:
    leave(server, evaluations)

    assert eventually(evaluations.have_ended)
    assert evaluations.count < len(FULL_MESSAGE.contexts)


def test_a_deadline_that_passes_ends_the_evaluation(server: EvaluationServer, evaluations: Evaluations) -> None:
    with grpc.insecure_channel(server.address) as channel, suppress(grpc.RpcError):
        list(EvaluationServiceStub(channel).BulkEvaluateFlags(iter([FULL_MESSAGE]), timeout=0.1))

    assert eventually(evaluations.have_ended)
    assert evaluations.count < len(FULL_MESSAGE.contexts)


def test_without_pacing_the_evaluation_goes_on_without_its_client(
    server: EvaluationServer, evaluations: Evaluations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "through", lambda _self, items: items)

    leave(server, evaluations)

    assert eventually(lambda: evaluations.count == len(FULL_MESSAGE.contexts))


@pytest.mark.parametrize(("portion", "ends"), [(pacing.PORTION, 1 + MANY_FLAGS // pacing.PORTION), (MANY_FLAGS, 1)])
def test_many_flags_of_one_user_are_evaluated_in_slices(
    portion: int, ends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[object] = []
    monkeypatch.setattr(PythonDraws, "at_once", MANY_FLAGS - 1)
    monkeypatch.setattr(pacing, "PORTION", portion)
    monkeypatch.setattr(Pace, "_end_slice", lambda pace: ended.append(pace))  # noqa: PLW0108 - a method
    flags = [FlagConfig(key=f"flag-{number}", enabled=True, rollout_percentage=50) for number in range(MANY_FLAGS)]
    with serve(flags) as server, grpc.insecure_channel(server.address) as channel:
        one = BulkEvaluateFlagsRequest(contexts=FULL_MESSAGE.contexts[:1])
        list(EvaluationServiceStub(channel).BulkEvaluateFlags(iter([one]), timeout=TIMEOUT_S))

    assert len(ended) == ends


def leave(server: EvaluationServer, evaluations: Evaluations) -> None:
    """Send a full message, and cancel once its evaluation has begun."""
    with grpc.insecure_channel(server.address) as channel:
        call = EvaluationServiceStub(channel).BulkEvaluateFlags(iter([FULL_MESSAGE]), timeout=TIMEOUT_S)
        assert eventually(lambda: evaluations.count > 0)
        call.cancel()


def test_a_message_over_its_budget_is_refused_and_a_smaller_one_served(start_server: StartServer) -> None:
    server = start_server(bulk_cpu_budget_s=0.001)
    with connect(server) as channel:
        stub = EvaluationServiceStub(channel)

        refused = refusal_of(lambda: list(stub.BulkEvaluateFlags(iter([FULL_MESSAGE]), timeout=TIMEOUT_S)))
        small = BulkEvaluateFlagsRequest(contexts=FULL_MESSAGE.contexts[:1])
        served = list(stub.BulkEvaluateFlags(iter([small]), timeout=TIMEOUT_S))

    assert refused == Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "CPU_BUDGET_EXCEEDED", {"budget_s": "0.001"})
    assert [len(response.batch.results) for response in served] == [0, 1]


def test_a_full_message_of_many_flags_stays_within_the_default_budget(server: EvaluationServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        responses = EvaluationServiceStub(channel).BulkEvaluateFlags(iter([FULL_MESSAGE]), timeout=TIMEOUT_S)

        assert sum(len(response.batch.results) for response in responses) == len(FULL_MESSAGE.contexts)
