"""Liveness of a gRPC server: whether its serving thread, which every call passes, answers."""

import os
import secrets
import threading

import grpc

# No service has this method: the serving thread itself refuses it, without a worker of any pool.
_UNKNOWN_METHOD = "/gatekeeper.Liveness/Ask"
_TIMEOUT_S = 1.0


class ServingThreadProbe:
    """Checks the one thread of a server that accepts calls, over a socket of its own.

    Over a port that workers share, another worker might answer. The socket's name is abstract: no file is left behind
    by a killed process.

    Args:
        server: The server, not started yet.
    """

    def __init__(self, server: grpc.Server) -> None:
        address = f"unix-abstract:gatekeeper-{os.getpid()}-{secrets.token_hex(8)}"
        server.add_insecure_port(address)
        self._address = address
        self._lock = threading.Lock()  # guards _channel
        self._channel: grpc.Channel | None = None

    def start(self) -> None:
        """Connect; call it after the server has started."""
        with self._lock:
            self._channel = grpc.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        """Disconnect; call it before the server stops."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def answers(self) -> bool:
        """Return whether the serving thread answers within 1 s; True before `start` and after `close`."""
        channel = self._channel
        if channel is None:
            return True
        try:
            _call(channel)
        except grpc.RpcError as refusal:
            return refusal.code() is grpc.StatusCode.UNIMPLEMENTED or self._channel is None
        except ValueError:  # The channel was closed by `close`.
            return True
        return True


def _call(channel: grpc.Channel) -> bytes:
    call = channel.unary_unary(_UNKNOWN_METHOD, request_serializer=bytes, response_deserializer=bytes)
    return call(b"", timeout=_TIMEOUT_S)
