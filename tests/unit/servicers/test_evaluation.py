"""EvaluationService on a clock that only the test moves: at which moment an answer begins to say `stale`.

A test on a real clock can only wait longer than the bound. This one asks a millisecond before and after it.
"""

from collections.abc import Callable

import grpc
import grpc_testing  # type: ignore[import-untyped] # Published without py.typed.
import pytest

from gatekeeper_client.v1 import evaluation_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_grpc.cache.change_history import ChangeHistory
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.watcher_hub import WatcherHub
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.servicers.evaluation import EvaluationServicer
from gatekeeper_grpc.wire.watch import watch_message
from tests.support.flags import flag

pytestmark = pytest.mark.promise("A4")

SERVICE = pb.DESCRIPTOR.services_by_name["EvaluationService"]
STALE_AFTER_S = 10.0
CONTEXT = EvaluationContext(user_id="anna")


class House:
    """The servicer behind a server of grpc_testing, whose time is that of the cache."""

    def __init__(self) -> None:
        self.time = grpc_testing.strict_fake_time(1_000.0)
        self.cache = SnapshotCache(stale_after_s=STALE_AFTER_S, max_waiters=1, clock=self.time.time)
        servicer = EvaluationServicer(self.cache, WatcherHub(ChangeHistory(), watch_message, capacity=1))
        self.server = grpc_testing.server_from_dictionary({SERVICE: servicer}, self.time)

    def confirm(self) -> None:
        """Publish the flag `on`, as the database has just confirmed it."""
        self.cache.publish(Snapshot.build(revision=7, flags=[flag("on", enabled=True)]), confirmed_at=self.time.time())

    def evaluate(self) -> pb.EvaluateFlagsResponse:
        method = SERVICE.methods_by_name["EvaluateFlags"]
        call = self.server.invoke_unary_unary(method, (), pb.EvaluateFlagsRequest(context=CONTEXT), None)
        response, _, code, _ = call.termination()
        assert code is grpc.StatusCode.OK
        return pb.EvaluateFlagsResponse.FromString(response)

    def bulk_header(self) -> pb.BulkEvaluationHeader:
        call = self.server.invoke_stream_stream(SERVICE.methods_by_name["BulkEvaluateFlags"], (), None)
        call.send_request(pb.BulkEvaluateFlagsRequest(contexts=[CONTEXT]))
        call.requests_closed()
        response: pb.BulkEvaluateFlagsResponse = call.take_response()
        call.take_response()
        assert call.termination()[1] is grpc.StatusCode.OK
        return response.header


@pytest.fixture
def house() -> House:
    house = House()
    house.confirm()
    return house


@pytest.mark.parametrize("answer", [House.evaluate, House.bulk_header], ids=["EvaluateFlags", "BulkEvaluateFlags"])
def test_an_answer_says_stale_from_the_bound_to_the_next_confirmation(
    house: House, answer: Callable[[House], pb.EvaluateFlagsResponse]
) -> None:
    said = []
    for pause_s in (STALE_AFTER_S - 0.001, 0.002):
        house.time.sleep_for(pause_s)
        said.append(answer(house).stale)
    house.confirm()
    said.append(answer(house).stale)

    assert said == [False, True, False]


def test_a_stale_answer_is_the_last_one_that_was_confirmed(house: House) -> None:
    fresh = house.evaluate()
    house.time.sleep_for(24 * 60 * 60.0)

    stale = house.evaluate()

    fresh.stale = True
    assert stale == fresh
