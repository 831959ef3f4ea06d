"""Open health watches and shutdown."""

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.support.servers import StartServer, connect

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_open_watch_learns_of_the_shutdown_and_does_not_hold_it_up(start_server: StartServer) -> None:
    server = start_server(grace_s=3_600)  # Held up, the test would run out of time.
    with connect(server) as channel:
        watch = HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        server.stop()
        last = next(watch)
        with pytest.raises(grpc.RpcError) as ended:
            next(watch)
    assert last.status == NOT_SERVING
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
