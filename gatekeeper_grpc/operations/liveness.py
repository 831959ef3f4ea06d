"""Whether a gRPC server still answers: asks its serving thread, which every call has to pass."""

import os
import secrets
import threading

import grpc

# Nobody serves it, so the serving thread itself turns it down, with no worker of any pool.
_NOBODYS_METHOD = "/gatekeeper.Liveness/Ask"
_TIMEOUT_S = 1.0


class ServingThreadProbe:
    """Knows whether the one thread of a server that takes calls is alive.

    It asks by way of a socket of its own: where workers share the port, another might answer. The socket's name is
    abstract, so that no file outlives a kill.

    Args:
        server: Not started yet.
    """

    def __init__(self, server: grpc.Server) -> None:
        address = f"unix-abstract:gatekeeper-{os.getpid()}-{secrets.token_hex(8)}"
        server.add_insecure_port(address)
        self._address = address
        self._lock = threading.Lock()  # guards _channel
        self._channel: grpc.Channel | None = None

    def start(self) -> None:
        """Begin to ask: the server has started."""
        with self._lock:
            self._channel = grpc.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        """Ask no more: the server is about to stop."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def answers(self) -> bool:
        """Ask, and wait at most 1 s for the answer. True as well while there is nothing to ask, before and after."""
        channel = self._channel
        if channel is None:
            return True
        try:
            _ask(channel)
        except grpc.RpcError as refusal:
            return refusal.code() is grpc.StatusCode.UNIMPLEMENTED or self._channel is None
        except ValueError:  # The channel was closed meanwhile.
            return True
        return True


def _ask(channel: grpc.Channel) -> bytes:
    ask = channel.unary_unary(_NOBODYS_METHOD, request_serializer=bytes, response_deserializer=bytes)
    return ask(b"", timeout=_TIMEOUT_S)
