"""How our gRPC servers listen: the options they all have, and addresses that are refused when they are taken."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

# Above what any method takes, so that it is ours to refuse: grpcio's own refusal says nothing that a program can read.
MAX_RECEIVED_BYTES = 8 << 20
SHARED_PORT = ("grpc.so_reuseport", 1)

# What each option does is proven in tests/rpc/transport/test_listener.py: grpcio ignores names that it does not know.
OPTIONS: tuple[tuple[str, Any], ...] = (
    # By default two servers can share a port without noticing.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.server_handshake_timeout_ms", 5_000),
    # Clients may keep connections alive with a ping every few seconds; the default policy hangs up on them.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class ListenError(Exception):
    """An address cannot be served on; the message names it."""

    @classmethod
    def at(cls, address: str) -> "ListenError":
        """Say it of an address."""
        return cls(f"cannot listen on {address}: is another process using it?")


def new_server(
    pool: ThreadPoolExecutor, interceptors: tuple[grpc.ServerInterceptor, ...], *, shares_port: bool = False
) -> grpc.Server:
    """Make a server; with `shares_port`, others may listen on its port, too."""
    options = dict(OPTIONS) | dict([SHARED_PORT] if shares_port else [])
    return grpc.server(pool, options=tuple(options.items()), interceptors=[*interceptors])


def bind(server: grpc.Server, address: str) -> int:
    """Have a server listen on host:port, and return the port. Errors: `ListenError`."""
    try:
        return server.add_insecure_port(address)
    except RuntimeError as exc:
        raise ListenError.at(address) from exc
