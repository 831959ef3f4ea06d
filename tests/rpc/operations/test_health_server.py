"""The health server on its own port: few threads, and a bounded queue."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.operations.health import HealthReporter
from gatekeeper_grpc.operations.health_server import HealthServer
from gatekeeper_grpc.operations.readiness import Readiness
from tests.support.clients import TIMEOUT_S

CHECK = health_pb2.HealthCheckRequest()
# grpcio's serving thread, one for deadlines, two workers.
THREADS = 4


def not_asked() -> Readiness:
    """The reporter asks after its start, which these tests do not need."""
    raise NotImplementedError


@pytest.fixture
def threads_before() -> int:
    return threading.active_count()


@pytest.fixture
def port(threads_before: int) -> Iterator[int]:
    server = HealthServer(HealthReporter(not_asked))
    port = server.bind(ListenAddress(host="127.0.0.1"))
    server.start()
    yield port
    server.stop()


def check(target: str) -> Any:
    with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(CHECK, timeout=TIMEOUT_S).status


def test_at_rest_it_has_the_serving_thread_alone(threads_before: int, port: int) -> None:
    assert threading.active_count() == threads_before + 1


def test_a_crowd_of_checks_gets_four_threads(threads_before: int, port: int) -> None:
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(check, f"127.0.0.1:{port}") for _ in range(40)]
        statuses = {answer.result(TIMEOUT_S) for answer in answers}

    assert statuses == {health_pb2.HealthCheckResponse.SERVING}
    assert threads_of_server(threads_before) <= THREADS


def threads_of_server(threads_before: int) -> int:
    return threading.active_count() - threads_before
