"""Makes gRPC servers with the options of this project, and binds them to addresses."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

# A little more than any method accepts: within it our own refusal names the limit, beyond it grpcio refuses the header.
MAX_RECEIVED_BYTES = (4 << 20) + (16 << 10)
LOOKAHEAD_BYTES = 16 << 10
"""What a client can send of a message that the server has not asked for yet."""
MAX_BACKLOG = 10_000
"""How many calls wait for the serving thread, which takes some 10,000 a second."""
SHARED_PORT = ("grpc.so_reuseport", 1)

# tests/rpc/transport/test_listener.py proves the effect of each option: grpcio ignores names that it does not know.
OPTIONS: tuple[tuple[str, Any], ...] = (
    # By default, two servers can share a port unnoticed.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
    # By default a client may send 4 MiB that nobody has asked for, and more once grpcio has measured a fast line.
    ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_concurrent_streams", 100),
    # Calls that the serving thread has not taken yet. By default grpcio drops them at random above 1,000, and clients
    # receive CANCELLED, which they may not retry.
    ("grpc.server.max_pending_requests", MAX_BACKLOG),
    ("grpc.server.max_pending_requests_hard_limit", MAX_BACKLOG),
    ("grpc.server_handshake_timeout_ms", 5_000),
    # Clients may send a ping every few seconds; the default policy disconnects them.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A client without a call for so long receives GOAWAY, and connects again with its next call.
    ("grpc.max_connection_idle_ms", 300_000),
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
    pool: ThreadPoolExecutor,
    interceptor: grpc.ServerInterceptor,
    *,
    max_connections: int | None = None,
    shares_port: bool = False,
    max_message_bytes: int | None = None,
) -> grpc.Server:
    """Make a server.

    Args:
        pool: Gets the calls of methods without a pool of their own.
        interceptor: What every call passes.
        max_connections: How many it accepts on one address; it closes any further one at once. None: any number.
        shares_port: Whether other processes may listen on its port, too.
        max_message_bytes: The largest message that it receives, if that is not `MAX_RECEIVED_BYTES`.
    """
    options = dict(OPTIONS) | dict([SHARED_PORT] if shares_port else [])
    if max_connections is not None:
        options["grpc.max_allowed_incoming_connections"] = max_connections
    if max_message_bytes is not None:
        options["grpc.max_receive_message_length"] = max_message_bytes
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
