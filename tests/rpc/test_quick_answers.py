"""Answers at once: a small evaluation is answered without a worker, as a worker would; all others are left to one."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.struct_pb2 import Struct

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, EvaluateFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import SegmentTarget
from gatekeeper_grpc.interceptors import request_scope
from gatekeeper_grpc.interceptors.request_scope import CALL_ID_KEY
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport.admission import PoolName
from tests.support.clients import SEGMENT_KEYS, TIMEOUT_S, Installation, created, installed
from tests.support.servers import KEYS, connect, settings_for_tests
from tests.support.waiting import eventually

PLAIN, TARGETED, DRAWN = "plain", "targeted", "drawn"
ANNA = EvaluationContext(user_id="anna")


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A server, and how many calls it has answered at once."""

    server: GatekeeperServer
    channel: grpc.Channel

    def count(self) -> int:
        return self.server.pools[PoolName.EVALUATION].quick_answers

    def ask(self, **fields: Any) -> EvaluateFlagsResponse | grpc.StatusCode:
        """Return the answer, or the status of a refusal."""
        request = EvaluateFlagsRequest(**{"context": ANNA, **fields})
        answer: EvaluateFlagsResponse | grpc.StatusCode
        try:
            answer = EvaluationServiceStub(self.channel).EvaluateFlags(request, timeout=TIMEOUT_S)
        except grpc.RpcError as refusal:
            answer = refusal.code()
        return answer


@pytest.fixture(scope="module")
def house(postgres: str) -> Iterator[Installation]:
    with installed(postgres) as installation:
        admin = installation.admin
        created(admin, key=PLAIN, enabled=True, default_value=True)
        created(admin, key=DRAWN, enabled=True, rollout_percentage=50)
        target = SegmentTarget(segment_key=SEGMENT_KEYS[0], value=True)
        created(admin, key=TARGETED, enabled=True, segment_targets=[target])
        yield installation


@pytest.fixture(scope="module", autouse=True)
def production_logs() -> Iterator[None]:
    """Log at INFO, as a server does: at DEBUG each call has a line, which a worker writes."""
    logger = structlog.wrap_logger(
        structlog.PrintLogger(), wrapper_class=structlog.make_filtering_bound_logger(logging.INFO)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_scope, "_log", logger)
        yield


@pytest.fixture(scope="module")
def at_once(house: Installation) -> Answering:
    return Answering(server=house.server, channel=house.channels[None])


@pytest.fixture(scope="module")
def on_workers(house: Installation) -> Iterator[Answering]:
    server = GatekeeperServer(settings_for_tests(answer_at_once=False), dsn=house.dsn, keys=KEYS)
    server.start()
    with connect(server) as channel:
        yield Answering(server=server, channel=channel)
    server.stop()


def attributes(**values: Any) -> EvaluationContext:
    struct = Struct()
    struct.update(values)
    return EvaluationContext(user_id="anna", attributes=struct)


@pytest.mark.parametrize(
    "question",
    [
        {"flag_keys": [PLAIN]},
        {"flag_keys": [DRAWN, "unknown", PLAIN]},
        {"flag_keys": [PLAIN], "min_revision": 1},
        {"flag_keys": [DRAWN], "context": attributes(plan="pro")},
    ],
    ids=["one flag", "a draw and an unknown flag", "a revision that is there", "attributes"],
)
def test_a_small_question_is_answered_at_once_as_a_worker_would(
    question: dict[str, Any], at_once: Answering, on_workers: Answering
) -> None:
    before = at_once.count()
    answer = at_once.ask(**question)

    assert eventually(lambda: at_once.count() == before + 1)  # Counted once the answer is on its way.
    assert (on_workers.ask(**question), on_workers.count()) == (answer, 0)


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"flag_keys": [TARGETED]},
        {"flag_keys": [PLAIN], "include_details": True},
        {"flag_keys": [PLAIN], "context": attributes(note="x" * 3_000)},
        {"flag_keys": [PLAIN, PLAIN]},
        {"flag_keys": [PLAIN], "min_revision": 1 << 40},
        {"flag_keys": [f"unknown-{number}" for number in range(201)]},
    ],
    ids=[
        "a targeted flag among all",
        "a targeted flag",
        "details",
        "long",
        "refused",
        "a revision ahead",
        "many flags",
    ],
)
def test_any_other_question_is_left_to_a_worker(
    question: dict[str, Any], at_once: Answering, on_workers: Answering
) -> None:
    before = at_once.count()
    answer = at_once.ask(**question)

    assert at_once.count() == before
    assert on_workers.ask(**question) == answer


def test_an_answer_at_once_carries_the_id_of_its_call(at_once: Answering) -> None:
    request = EvaluateFlagsRequest(context=ANNA, flag_keys=[PLAIN])

    _, call = EvaluationServiceStub(at_once.channel).EvaluateFlags.with_call(request, timeout=TIMEOUT_S)

    assert [len(value) for key, value in call.trailing_metadata() if key == CALL_ID_KEY] == [16]
