"""Draining: idle clients disconnect, calls in progress end, and the server waits for no one else."""

import socket
import time
from contextlib import ExitStack
from queue import SimpleQueue

import pytest

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport.drain import Drain
from gatekeeper_grpc.transport.goaway import connections
from tests.support.clients import TIMEOUT_S
from tests.support.servers import connect
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("C4")

ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
CLIENTS = 4


def drain_of(server: GatekeeperServer) -> Drain:
    return server.drain


def test_all_idle_clients_disconnect(server: GatekeeperServer) -> None:
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            channel = stack.enter_context(connect(server))
            EvaluationServiceStub(channel).EvaluateFlags(ANNA, timeout=TIMEOUT_S)

        assert drain_of(server).run(server.port, within_s=TIMEOUT_S) == 0


def test_a_draining_server_refuses_new_connections(server: GatekeeperServer) -> None:
    drain_of(server).run(server.port, within_s=0)

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)


def test_a_client_in_a_stream_gets_no_goaway_and_can_end_it(server: GatekeeperServer) -> None:
    requests: SimpleQueue[BulkEvaluateFlagsRequest | None] = SimpleQueue()
    with connect(server) as channel:
        answers = EvaluationServiceStub(channel).BulkEvaluateFlags(iter(requests.get, None), timeout=TIMEOUT_S)
        requests.put(BulkEvaluateFlagsRequest())
        next(answers)

        left = drain_of(server).run(server.port, within_s=0.1)
        requests.put(BulkEvaluateFlagsRequest(contexts=[ANNA.context]))
        requests.put(None)

        assert left == 1
        assert [result.user_id for answer in answers for result in answer.batch.results] == ["anna"]


def test_a_silent_connection_does_not_delay_the_stop(server: GatekeeperServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S):
        assert eventually(lambda: has_connections(server.port))
        before = time.monotonic()
        server.stop()

        assert time.monotonic() - before < TIMEOUT_S


def test_held_calls_are_served_after_the_release(server: GatekeeperServer, evaluation: EvaluationServiceStub) -> None:
    hold = server.pools.hold
    with hold.held():
        call = evaluation.EvaluateFlags.future(ANNA, timeout=TIMEOUT_S)
        assert eventually(lambda: bool(hold.pending()))
        assert not call.done()

    assert call.result().revision == 0


def has_connections(port: int) -> bool:
    return any(connections(port))
