"""EvaluateFlags is answered where it arrives if that is certain, small and cheap; everything else is for a worker.

That both ways answer alike is what the tests of evaluation show: they run both ways (fixture `answering`).
"""

import math
import threading
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import SegmentTarget
from gatekeeper_client.v1.segment_pb2 import Segment
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.instrumentation.counters import RPC_DURATION
from gatekeeper_grpc.interceptors import request_scope
from gatekeeper_grpc.interceptors.request_scope import CALL_ID_KEY
from gatekeeper_grpc.interceptors.tracing import REQUEST_ID_KEY
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.servicers import evaluation as servicer
from gatekeeper_grpc.testing import serve
from gatekeeper_grpc.transport.admission import PoolName
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall, _BriefState
from gatekeeper_grpc.wire.evaluation import answer_to_bytes
from gatekeeper_grpc.wire.status import status_from_error
from tests.support.clients import TIMEOUT_S, created, refusal_of
from tests.support.servers import StartServer, connect, token_for
from tests.support.waiting import eventually

ANNA = EvaluationContext(user_id="anna")
METHOD = "/gatekeeper.v1.EvaluationService/EvaluateFlags"


def evaluate(server: GatekeeperServer, **fields: Any) -> grpc.Call:
    """Evaluate flags, for anna unless another context is given; return the call, which is over."""
    request = EvaluateFlagsRequest(**{"context": ANNA, **fields})
    with connect(server) as channel:
        call = EvaluationServiceStub(channel).EvaluateFlags.with_call(
            request, timeout=TIMEOUT_S, metadata=((REQUEST_ID_KEY, "order-7"),)
        )[1]
    assert isinstance(call, grpc.Call)
    return call


def many(count: int) -> Struct:
    """So many attributes, of more than ten bytes each."""
    attributes = Struct()
    attributes.update({f"attribute-{number}": True for number in range(count)})
    return attributes


def had_worker(server: GatekeeperServer) -> bool:
    """Whether an evaluation has had a worker since the server was started: the first one starts a thread."""
    return eventually(lambda: bool(server.pools[PoolName.EVALUATION]._threads))


@pytest.fixture
def never_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, the serving thread does not leave answers to workers."""
    monkeypatch.setattr(request_scope, "_LATE_S", math.inf)


@pytest.mark.usefixtures("never_late")
def test_a_small_evaluation_takes_no_worker(server: GatekeeperServer) -> None:
    evaluate(server)

    assert not server.pools[PoolName.EVALUATION]._threads


@pytest.mark.usefixtures("never_late")
def test_few_attributes_make_no_difference(server: GatekeeperServer) -> None:
    evaluate(server, context=EvaluationContext(user_id="anna", attributes=many(10)))

    assert not server.pools[PoolName.EVALUATION]._threads


def test_twin_with_the_setting_off_it_does(start_server: StartServer) -> None:
    server = start_server(answer_at_once=False)

    evaluate(server)

    assert had_worker(server)


@pytest.fixture
def made_waitable(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """An item for each call of whose end the core is asked to tell."""
    times, become_lasting = list[None](), _BriefState.become_lasting

    def noted(state: Any) -> None:
        times.append(None)
        become_lasting(state)

    monkeypatch.setattr(_BriefState, "become_lasting", noted)
    return times


@pytest.mark.usefixtures("never_late")
def test_its_end_is_no_event_of_its_own(server: GatekeeperServer, made_waitable: list[None]) -> None:
    evaluate(server)

    assert made_waitable == []


def test_twin_for_a_worker_it_is(server: GatekeeperServer, made_waitable: list[None]) -> None:
    evaluate(server, include_details=True)

    assert len(made_waitable) == 1


def test_it_has_all_that_a_call_has(server: GatekeeperServer) -> None:
    before = sum(RPC_DURATION.labels(METHOD, "OK").counts)

    metadata = dict(evaluate(server).trailing_metadata())

    assert len(metadata[CALL_ID_KEY]) == 16
    assert metadata[REQUEST_ID_KEY] == "order-7"
    assert eventually(lambda: sum(RPC_DURATION.labels(METHOD, "OK").counts) == before + 1)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"include_details": True}, id="details"),
        pytest.param({"flag_keys": ["aimed"]}, id="a segment"),
        pytest.param({"context": EvaluationContext(user_id="anna", attributes=many(100))}, id="many attributes"),
        pytest.param({"flag_keys": [f"key-{number:03}-{'x' * 100}" for number in range(40)]}, id="a long message"),
    ],
)
def test_what_may_take_long_is_for_a_worker(server: GatekeeperServer, dsn: str, fields: dict[str, Any]) -> None:
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        admin = AdminServiceStub(channel)
        admin.CreateSegment(pb.CreateSegmentRequest(segment=Segment(key="staff")), timeout=TIMEOUT_S)
        created(admin, key="aimed", enabled=True, segment_targets=[SegmentTarget(segment_key="staff", value=True)])

    evaluate(server, **fields)

    assert had_worker(server)


def test_many_flags_are_for_a_worker(server: GatekeeperServer, monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setattr(servicer, "_MAX_FLAGS_AT_ONCE", 0)
    with connect(server, token=token_for(dsn, Role.EDITOR)) as channel:
        created(AdminServiceStub(channel), key="checkout")

    evaluate(server, flag_keys=["checkout"])

    assert had_worker(server)


def test_many_keys_are_for_a_worker_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "_MAX_NEW_KEYS_AT_ONCE", 1)
    request = EvaluateFlagsRequest(context=ANNA, flag_keys=["checkout", "search"])
    with serve({"checkout": True}) as server, grpc.insecure_channel(server.address) as channel:
        own = servicer.EvaluationServicer(server._cache, server._watchers)

        first = own.answer_at_once(request)
        by_worker = EvaluationServiceStub(channel).EvaluateFlags(request, timeout=TIMEOUT_S)
        second = own.answer_at_once(request)

    assert first is None
    assert second == by_worker.SerializeToString()


def test_a_refusal_is_for_a_worker(server: GatekeeperServer) -> None:
    refusal = refusal_of(lambda: evaluate(server, flag_keys=["No Key"]))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert had_worker(server)


def test_a_revision_that_is_ahead_is_for_a_worker(server: GatekeeperServer) -> None:
    with pytest.raises(grpc.RpcError):
        evaluate(server, min_revision=1_000)

    assert had_worker(server)


def test_a_fault_while_answering_is_for_a_worker(server: GatekeeperServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_elsewhere(*args: Any, **named: Any) -> bytes:
        if not threading.current_thread().name.startswith("gatekeeper-evaluation"):
            raise ZeroDivisionError
        return answer_to_bytes(*args, **named)

    monkeypatch.setattr(servicer, "answer_to_bytes", fails_elsewhere)

    assert evaluate(server).code() is grpc.StatusCode.OK
    assert had_worker(server)


def test_a_serving_thread_that_is_late_leaves_answers_to_workers(
    server: GatekeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_scope, "_LATE_S", -1.0)

    evaluate(server)

    assert had_worker(server)


def test_a_refusal_after_the_answer_changes_nothing(server: GatekeeperServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message makes way for others at the moment in which it comes."""
    answer, are_brief = ArrivedCall.answer, list[bool]()
    too_late = status_from_error(ResourceExhausted("others wait"), "")

    def answer_then_refuse(call: ArrivedCall, *args: Any) -> bool:
        is_sent = answer(call, *args)
        call.refuse(too_late)
        are_brief.append(call.is_brief)
        return is_sent

    monkeypatch.setattr(request_scope, "_LATE_S", math.inf)
    monkeypatch.setattr(ArrivedCall, "answer", answer_then_refuse)

    assert [evaluate(server).code() for _ in range(2)] == [grpc.StatusCode.OK] * 2
    assert are_brief
    assert all(are_brief)


def test_an_answer_that_comes_too_late_harms_nobody(server: GatekeeperServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gives up while its call is answered."""
    cancelled, answer = threading.Event(), ArrivedCall.answer

    def wait_then_answer(call: ArrivedCall, *args: Any) -> bool:
        cancelled.wait(TIMEOUT_S)
        return answer(call, *args)

    monkeypatch.setattr(ArrivedCall, "answer", wait_then_answer)
    with connect(server) as channel:
        call = EvaluationServiceStub(channel).EvaluateFlags.future(EvaluateFlagsRequest(context=ANNA))
        call.cancel()
        cancelled.set()
        monkeypatch.undo()
        assert evaluate(server).code() is grpc.StatusCode.OK
