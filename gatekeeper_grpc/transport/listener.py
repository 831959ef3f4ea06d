"""Makes gRPC servers with the options of this project, and binds them to addresses."""

import errno
import os
import shutil
import socket
import stat
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.transport.forwarded import Proxies, client_of
from gatekeeper_grpc.transport.grpcio_internals import CallsInTurn, Metadata, SurplusCall

# A little more than any method accepts: within it our own refusal names the limit, beyond it grpcio refuses the header.
MAX_RECEIVED_BYTES = (4 << 20) + (16 << 10)
LOOKAHEAD_BYTES = 5 << 10
"""What a client can send of a message that the server has not asked for yet."""
_HOSTS = "127.0.0.1 is this machine alone, 0.0.0.0 all its addresses"
_REASONS = {
    errno.EADDRINUSE: "another process listens there{how_to_find}; stop it, or set another address",
    errno.EADDRNOTAVAIL: f"this machine has no address {{host}}; {_HOSTS}",
    errno.EACCES: "this account may not use it; ports above 1023 need no privilege, a Unix socket a writable directory",
    errno.ENOENT: "its directory does not exist",
    errno.EEXIST: "there is a file of that name that is no socket",
}
SHARED_PORT = ("grpc.so_reuseport", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCallLimits:
    """How many new calls a server keeps that grpcio has not dealt with."""

    waiting: int = 2_000
    """Those that wait for their turn; one more has one of them refused."""
    backlog: int = 5_200
    """Those that wait in grpcio, while the serving thread does not take them and let them wait for their turn."""

    @property
    def max_bytes(self) -> int:
        """What all of them may hold of messages together."""
        return (self.waiting + self.backlog) * LOOKAHEAD_BYTES

    def of_each(self, listeners: int) -> "NewCallLimits":
        """Divide them among the listeners of a process."""
        return NewCallLimits(waiting=self.waiting // listeners, backlog=self.backlog // listeners)


NEW_CALLS = NewCallLimits()
"""Those of a process."""

_BACKLOG_OPTIONS = ("grpc.server.max_pending_requests", "grpc.server.max_pending_requests_hard_limit")
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
    *((name, NEW_CALLS.backlog) for name in _BACKLOG_OPTIONS),
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


class Interceptor(grpc.ServerInterceptor):
    """What every call passes, and what is told of those that do not get so far."""

    @abstractmethod
    def refuse_surplus(self, call: SurplusCall) -> tuple[grpc.Status, Metadata]:
        """Count a call that is refused as it comes: on the serving thread. See `CallsInTurn`."""


class ListenError(Exception):
    """The server cannot listen on an address; the message names it, the cause and the remedy."""

    @classmethod
    def at(cls, address: ListenAddress, cause: OSError) -> "ListenError":
        """Make the error for `address`."""
        return cls(f"cannot listen on {address}: {_reason(address, cause)}")


def try_address(address: ListenAddress) -> None:
    """Bind an address for a moment, without listening on it. Port 0 and an abandoned Unix socket can be bound.

    Raises:
        ListenError: The address is taken, not ours, or no address of a machine.
    """
    try:
        _try_path(Path(address.path)) if address.is_unix else _try_port(address)
    except OSError as exc:
        raise ListenError.at(address, exc) from exc


def new_server(
    pool: ThreadPoolExecutor,
    interceptor: Interceptor,
    *,
    max_connections: int | None = None,
    shares_port: bool = False,
    max_message_bytes: int | None = None,
    new_calls: NewCallLimits | None = None,
    proxies: Proxies | None = None,
) -> grpc.Server:
    """Make a server, which takes new calls in turn of the addresses that they come from.

    Args:
        pool: Gets the calls of methods without a pool of their own.
        interceptor: What every call passes.
        max_connections: How many it accepts on one address; it closes any further one at once. None: any number.
        shares_port: Whether other processes may listen on its port, too.
        max_message_bytes: The largest message that it receives, if that is not `MAX_RECEIVED_BYTES`.
        new_calls: How many new calls it keeps, if those are not `NEW_CALLS`.
        proxies: Who may name the address of a call; None: nobody.
    """
    options = dict(OPTIONS) | dict([SHARED_PORT] if shares_port else [])
    if max_connections is not None:
        options["grpc.max_allowed_incoming_connections"] = max_connections
    if max_message_bytes is not None:
        options["grpc.max_receive_message_length"] = max_message_bytes
    if new_calls is not None:
        options |= dict.fromkeys(_BACKLOG_OPTIONS, new_calls.backlog)
    server = grpc.server(pool, options=tuple(options.items()), interceptors=[interceptor])
    waiting = (new_calls or NEW_CALLS).waiting
    take_in_turn(server, partial(client_named, proxies=proxies), interceptor.refuse_surplus, waiting)
    return server


def take_in_turn(
    server: grpc.Server,
    client_of: Callable[[str, Metadata], str],
    refuse: Callable[[SurplusCall], tuple[grpc.Status, Metadata]],
    max_waiting: int,
) -> None:
    """Have a server, before it is started, take new calls as `CallsInTurn` says."""
    CallsInTurn(server, client_of, refuse, max_waiting=max_waiting)


def client_named(peer: str, metadata: Metadata, *, proxies: Proxies | None) -> str:
    """Return whom a call comes from: its turn is that of this address, for its credentials are not known yet."""
    return peer if proxies is None else client_of(peer, metadata, proxies)


def queued_by_method(server: grpc.Server, service: ServiceDescriptor) -> grpc.Server:
    """Return `server` as generated code adds `service` to it so that calls of each method wait in a queue of their own.

    grpcio takes calls in order, from one queue for each method that is registered by name, and from one for all others:
    in that one, a flood of one method delays all methods. Stubs of an old protoc register nothing by name.
    """
    return cast("grpc.Server", _QueuePerMethod(server, service))


class _QueuePerMethod:
    def __init__(self, server: grpc.Server, service: ServiceDescriptor) -> None:
        self._server: Any = server  # The method that registers is not in grpcio's published types.
        self._service = service

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        (handler,) = handlers
        name = self._service.full_name
        found = {method.name: handler.service(_Details(f"/{name}/{method.name}")) for method in self._service.methods}
        self._server.add_registered_method_handlers(name, found)


class _Details(grpc.HandlerCallDetails):
    """What a handler asks of a call to find its method."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


def bind(server: grpc.Server, address: ListenAddress, credentials: grpc.ServerCredentials | None = None) -> int:
    """Have `server` listen on `address`, and return the port; 0 of a Unix socket.

    Args:
        server: Not started yet.
        address: Where to listen.
        credentials: For TLS. None: plaintext.

    Raises:
        ListenError: The address is taken or not ours.
    """
    try:
        port = _add_port(server, str(address), credentials)
    except RuntimeError as exc:  # It has no cause that a program can read.
        try_address(address)
        raise ListenError(f"cannot listen on {address}: gRPC refuses it") from exc
    return 0 if address.is_unix else port


def _add_port(server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    return server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)


def _try_port(address: ListenAddress) -> None:
    failure: OSError | None = None
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, _, _, _, sockaddr in found:
        try:
            with socket.socket(family) as trial:
                # Connections of an earlier process may linger on the port; with this, gRPC listens nevertheless.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(sockaddr)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise
            failure = exc
        else:
            return
    if failure:
        raise failure


def _try_path(path: Path) -> None:
    """Connect, because gRPC would take a socket away from a server that listens on it."""
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(errno.ENOENT if not path.parent.is_dir() else errno.EACCES, str(path.parent))
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise OSError(errno.EEXIST, str(path))
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(str(path)) == 0:
            raise OSError(errno.EADDRINUSE, str(path))


def _reason(address: ListenAddress, cause: OSError) -> str:
    if isinstance(cause, socket.gaierror):
        return f"the name {address.host} has no address; {_HOSTS}"
    text = _REASONS.get(cause.errno or 0, cause.strerror or str(cause))
    return text.format(host=address.host, how_to_find=_how_to_find(address))


def _how_to_find(address: ListenAddress) -> str:
    command = f"ss -lxp src {address.path}" if address.is_unix else f"ss -ltnp sport = :{address.port}"
    return f" (`{command}` shows which)" if shutil.which("ss") else ""
