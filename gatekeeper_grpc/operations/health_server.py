"""gRPC health on a port and workers of its own: health checks work while the main server is saturated.

Reflection, for tools such as grpcurl, has two workers that health does not use, and no queue.
"""

from grpc_health.v1 import health_pb2_grpc

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.interceptors.authentication import refuse_token
from gatekeeper_grpc.interceptors.chain import Stages
from gatekeeper_grpc.operations.health import HEALTH, HealthReporter
from gatekeeper_grpc.operations.reflection import ReflectionServicer
from gatekeeper_grpc.transport.admission import DEFAULT_SIZES, CallPools, PoolName
from gatekeeper_grpc.transport.connections import ConnectionLimits, ConnectionSweeper
from gatekeeper_grpc.transport.listener import NewCallLimits, bind, new_server
from gatekeeper_grpc.transport.pending_calls import PendingLimits
from gatekeeper_grpc.transport.shares import PoolSize
from gatekeeper_grpc.transport.tls import ServerTls

MAX_HEALTH_CONNECTIONS = 64
MAX_REFLECTION_STREAMS = 2
_SIZES = {
    PoolName.OPERATIONS: DEFAULT_SIZES[PoolName.OPERATIONS],
    PoolName.REFLECTION: PoolSize(workers=MAX_REFLECTION_STREAMS, queue=0),
}
# A check has the name of a service in it.
_MAX_MESSAGE_BYTES = 4 << 10
_PENDING = PendingLimits(calls=128, receiving=32, queued_bytes=64 << 10, max_message_bytes=_MAX_MESSAGE_BYTES)
_NEW_CALLS = NewCallLimits(waiting=64, backlog=192)
STRANGERS_BYTES = _PENDING.max_bytes + _NEW_CALLS.max_bytes
"""What the messages of strangers may hold that no worker has."""


class HealthServer:
    """Serves the status of a reporter, from `start` to `stop`.

    Args:
        reporter: Knows the status.
        reflection: Whether clients may read by reflection how to ask for it.
    """

    def __init__(self, reporter: HealthReporter, *, reflection: bool = True) -> None:
        self._pools = CallPools(_SIZES, pending=_PENDING)
        stages = Stages(verify_token=refuse_token, pools=self._pools)
        pool = self._pools[PoolName.OPERATIONS]
        self._server = new_server(
            pool,
            stages,
            max_connections=MAX_HEALTH_CONNECTIONS,
            max_message_bytes=_MAX_MESSAGE_BYTES,
            new_calls=_NEW_CALLS,
        )
        self.sweeper = ConnectionSweeper(self._server, ConnectionLimits(most=MAX_HEALTH_CONNECTIONS))
        health_pb2_grpc.add_HealthServicer_to_server(reporter.servicer, self._server)
        if reflection:
            ReflectionServicer([HEALTH]).add_to(self._server)

    def bind(self, address: ListenAddress, tls: ServerTls | None = None) -> int:
        """Listen on `address`, and return the port; 0 of a Unix socket.

        Args:
            address: Where to listen.
            tls: The certificate to show. None: plaintext.

        Raises:
            ListenError: The address is taken or not ours.
        """
        port = bind(self._server, address, tls.credentials(for_probes=True) if tls else None)
        self.sweeper.start(port)
        return port

    def start(self) -> None:
        """Start to serve."""
        self._server.start()

    def stop(self) -> None:
        """End all calls at once and close the port, even if the server was never started."""
        self.sweeper.close()
        self._server.stop(0).wait(1)
        self._pools.close()
