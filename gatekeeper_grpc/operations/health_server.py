"""gRPC health on a port and workers of its own: it answers when the server that it speaks for is full."""

from grpc_health.v1 import health_pb2_grpc

from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.errors import Unauthenticated
from gatekeeper_grpc.interceptors.chain import build_interceptors
from gatekeeper_grpc.operations.health import HealthReporter
from gatekeeper_grpc.transport.admission import CallPools, PoolName
from gatekeeper_grpc.transport.listener import bind, new_server


class HealthServer:
    """Serves what a reporter says, from `start` to `stop`."""

    def __init__(self, reporter: HealthReporter) -> None:
        self._pools = CallPools()
        interceptors = build_interceptors(verifier=_Nobody(), pools=self._pools)
        self._server = new_server(self._pools[PoolName.OPERATIONS], interceptors)
        health_pb2_grpc.add_HealthServicer_to_server(reporter.servicer, self._server)

    def bind(self, address: str) -> int:
        """Take the port of host:port, and return it. Errors: `ListenError`."""
        return bind(self._server, address)

    def start(self) -> None:
        """Serve."""
        self._server.start()

    def stop(self) -> None:
        """End all calls at once, and let go of the port; also when it was never started."""
        self._server.stop(0).wait(1)
        self._pools.close()


class _Nobody:
    """Health needs no token, and nothing else is served here."""

    def verify(self, token: str) -> Caller:
        """Know nobody."""
        del token
        raise Unauthenticated("no tokens are known here")
