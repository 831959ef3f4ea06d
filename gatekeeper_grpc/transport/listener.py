"""Makes gRPC servers with the options of this project, and binds them to addresses."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

# More than any method accepts: our own stage refuses the message, for the refusal of grpcio has no readable reason.
MAX_RECEIVED_BYTES = 8 << 20
SHARED_PORT = ("grpc.so_reuseport", 1)

# tests/rpc/transport/test_listener.py proves the effect of each option: grpcio ignores names that it does not know.
OPTIONS: tuple[tuple[str, Any], ...] = (
    # By default, two servers can share a port unnoticed.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.server_handshake_timeout_ms", 5_000),
    # Clients may send a ping every few seconds; the default policy disconnects them.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class ListenError(Exception):
    """The server cannot listen on an address; the message names it."""

    @classmethod
    def at(cls, address: str) -> "ListenError":
        """Make the error for `address`."""
        return cls(f"cannot listen on {address}: is another process using it?")


def new_server(
    pool: ThreadPoolExecutor, interceptor: grpc.ServerInterceptor, *, shares_port: bool = False
) -> grpc.Server:
    """Make a server. With `shares_port`, other processes may listen on its port, too."""
    options = dict(OPTIONS) | dict([SHARED_PORT] if shares_port else [])
    return grpc.server(pool, options=tuple(options.items()), interceptors=[interceptor])


def bind(server: grpc.Server, address: str) -> int:
    """Have `server` listen on `address`, which is host:port, and return the port.

    Raises:
        ListenError: The address is taken or not ours.
    """
    try:
        return server.add_insecure_port(address)
    except RuntimeError as exc:
        raise ListenError.at(address) from exc
