"""The TCP connections of a port that a gRPC server listens on, underneath gRPC: stop taking them, ask clients to go.

HTTP/2 has a frame for a friendly goodbye, GOAWAY: the client opens no further call on the connection, lets those that
run end, and hangs up. grpcio sends it in `server.stop` alone, after it has begun to cancel calls that arrive: whoever
asks before the goodbye has reached it is told CANCELLED. So we say it first, while everything is still served.
"""

import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote

Peer = tuple[str, int]
"""A client's address and port."""

_DESCRIPTORS = Path("/proc/self/fd")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
# Length 8, type 7, no flags, stream 0; then the last stream that is served (all that there can be), and NO_ERROR.
_GOAWAY = struct.pack(">I", 8)[1:] + struct.pack(">BBIII", 7, 0, 0, 0x7FFF_FFFF, 0)
# Where `struct tcp_info` has `tcpi_bytes_acked`, and what the server's first frame, its SETTINGS, takes at least.
_BYTES_ACKED = slice(120, 128)
_SETTINGS_BYTES = 9


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection of a client."""

    peer: Peer
    _socket: socket.socket

    def has_received_settings(self) -> bool:
        """Tell whether the client has the server's first frame, before which no other may be sent."""
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
        return int.from_bytes(info[_BYTES_ACKED], "little") > _SETTINGS_BYTES

    def send_goaway(self) -> bool:
        """Send GOAWAY; False when that is not possible now.

        Only between two frames of gRPC: for a connection on which no response is under way.
        """
        try:
            sent = self._socket.send(_GOAWAY, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # Full, or gone.
            return False
        if sent < len(_GOAWAY):  # Half a frame: the connection is of no use any more.
            self._socket.shutdown(socket.SHUT_RDWR)
        return True


def peer_of(name: str) -> Peer | None:
    """Read what gRPC calls a client, such as ``ipv4:127.0.0.1:4711``; None when that is no TCP address."""
    family, _, rest = name.partition(":")
    if family not in {"ipv4", "ipv6"}:
        return None
    host, _, port = unquote(rest).rpartition(":")
    return _peer(host.strip("[]"), int(port))


def stop_accepting(port: int) -> None:
    """Take no further connections; those there are stay.

    The descriptors stay, too, for gRPC to close: it would complain of a socket that stops listening under its hands. So
    each gets another socket, on which nobody ever calls.
    """
    for descriptor, found in _sockets_of(port):
        with found:
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                with _unreachable_socket() as deaf:
                    os.dup2(deaf.fileno(), descriptor, inheritable=False)


@contextmanager
def connections(port: int) -> Iterator[list[Connection]]:
    """Give the open connections to `port`, for the length of the block."""
    with ExitStack() as stack:
        found = [stack.enter_context(duplicate) for _, duplicate in _sockets_of(port)]
        yield [Connection(peer, one) for one in found if (peer := _peer_at(one)) is not None]


def _peer_at(found: socket.socket) -> Peer | None:
    try:
        return _peer(*found.getpeername()[:2])
    except OSError:  # One that listens has no peer, and others may have lost theirs.
        return None


def _sockets_of(port: int) -> Iterator[tuple[int, socket.socket]]:
    """Find our TCP sockets of `port`: their descriptors, each with a duplicate for the caller to close.

    A duplicate, because gRPC may close its own at any time, and the number may then be anybody's.
    """
    for descriptor in _sockets():
        try:
            # Not `socket.dup`, which would make gRPC's own block: both have the same flags.
            found = socket.socket(fileno=os.dup(descriptor))
        except OSError:  # Closed meanwhile.
            continue
        if _is_tcp_of(found, port):
            yield descriptor, found
        else:
            found.close()


def _sockets() -> list[int]:
    """List the descriptors of our sockets; where the system does not tell, none: then gRPC alone says goodbye."""
    descriptors = [int(entry.name) for entry in _DESCRIPTORS.iterdir()] if _DESCRIPTORS.exists() else []
    return [descriptor for descriptor in descriptors if _is_socket(descriptor)]


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:  # Closed meanwhile, as the one that listed them is.
        return False


def _is_tcp_of(found: socket.socket, port: int) -> bool:
    is_tcp = found.family in _FAMILIES and found.type == socket.SOCK_STREAM
    return is_tcp and found.getsockname()[1] == port


def _unreachable_socket() -> socket.socket:
    deaf = socket.socket(socket.AF_UNIX)
    deaf.bind("")  # Linux gives it an abstract name, which nobody knows.
    deaf.listen()
    return deaf


def _peer(host: str, port: int) -> Peer:
    address = ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address), port
