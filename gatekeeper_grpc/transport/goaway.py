"""The TCP connections of a listening port, below gRPC: stop accepting them, send GOAWAY on them, end them.

GOAWAY is the HTTP/2 frame of a graceful shutdown: the client opens no further call on the connection, lets its calls in
progress end, and disconnects. grpcio sends it only in `server.stop`, after it has begun to cancel new calls. A client
that calls before GOAWAY has reached it receives CANCELLED. So this module sends GOAWAY first, while the server still
serves every call.
"""

import os
import socket
import stat
import struct
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote

Peer = tuple[str, int]
"""A client's address and port."""

_DESCRIPTORS = Path("/proc/self/fd")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
# Length 8, type 7, no flags, stream 0; then the last stream that is served (the highest there can be), and NO_ERROR.
_GOAWAY = struct.pack(">I", 8)[1:] + struct.pack(">BBIII", 7, 0, 0, 0x7FFF_FFFF, 0)
# The offset of `tcpi_bytes_acked` in `struct tcp_info`, and the least size of the server's first frame, SETTINGS.
_BYTES_ACKED = slice(120, 128)
_SETTINGS_BYTES = 9
# The offset of `tcpi_last_data_recv` in `struct tcp_info`.
_LAST_DATA_RECEIVED_MS = slice(52, 56)
_INT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection of a client."""

    peer: Peer
    descriptor: int
    """gRPC's own."""
    _socket: socket.socket

    def has_received_settings(self) -> bool:
        """Tell whether the client has received SETTINGS: no frame may be sent before it."""
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
        return int.from_bytes(info[_BYTES_ACKED], "little") > _SETTINGS_BYTES

    def idle_s(self) -> float:
        """Return how long the client has sent nothing."""
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED_MS.stop)
        return int.from_bytes(info[_LAST_DATA_RECEIVED_MS], sys.byteorder) / 1_000

    def has_unreceived(self) -> bool:
        """Tell whether the client's machine has not acknowledged all that was sent to it."""
        size = ioctl(self._socket, termios.TIOCOUTQ, bytes(_INT_BYTES))
        return any(size)

    def end(self) -> None:
        """Send nothing more, and tell the client so. It disconnects, and gRPC then closes its descriptor."""
        with suppress(OSError):  # The client has disconnected.
            self._socket.shutdown(socket.SHUT_WR)

    def disconnect(self) -> None:
        """End the connection at once. gRPC notices and closes its descriptor."""
        with suppress(OSError):  # The client has disconnected.
            self._socket.shutdown(socket.SHUT_RDWR)

    def send_goaway(self) -> bool:
        """Send GOAWAY; False when that is not possible now.

        Call it only between two frames of gRPC, so while no response is in transit on the connection.
        """
        try:
            sent = self._socket.send(_GOAWAY, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # The buffer is full, or the client has disconnected.
            return False
        if sent < len(_GOAWAY):  # A part of a frame makes the connection unusable.
            self._socket.shutdown(socket.SHUT_RDWR)
        return True


def open_descriptors() -> int:
    """Count the descriptors of the process; 0 on a system without /proc."""
    return sum(1 for _ in os.scandir(_DESCRIPTORS)) if _DESCRIPTORS.exists() else 0


def peer_of(name: str) -> Peer | None:
    """Parse gRPC's name of a client, such as ``ipv4:127.0.0.1:4711``; None if it is not a TCP address."""
    family, _, rest = name.partition(":")
    if family not in {"ipv4", "ipv6"}:
        return None
    host, _, port = unquote(rest).rpartition(":")
    return _peer(host.strip("[]"), int(port))


def stop_accepting(port: int) -> None:
    """Refuse new connections to `port`; open ones stay.

    The descriptors stay open, too, because gRPC closes them and logs an error for a socket that no longer listens. Each
    descriptor gets another socket, which no client can reach.
    """
    for descriptor, found in _sockets_of(port, _sockets()):
        with found:
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                with _unreachable_socket() as unreachable:
                    os.dup2(unreachable.fileno(), descriptor, inheritable=False)


def connections(port: int, *, among: Iterable[int] | None = None) -> Iterator[Connection]:
    """Yield the open connections to `port`, each valid until the next one: there may be no descriptors for them all.

    Args:
        port: Where the process listens.
        among: The descriptors to look at. None: all.
    """
    for descriptor, duplicate in _sockets_of(port, _sockets() if among is None else among):
        with duplicate:
            if (peer := _peer_at(duplicate)) is not None:
                yield Connection(peer, descriptor, duplicate)


def _peer_at(found: socket.socket) -> Peer | None:
    try:
        return _peer(*found.getpeername()[:2])
    except OSError:  # A listening socket has no peer; others may have lost theirs.
        return None


def _sockets_of(port: int, descriptors: Iterable[int]) -> Iterator[tuple[int, socket.socket]]:
    """Find our TCP sockets of `port` among descriptors: the descriptor, and a duplicate that the caller closes.

    The duplicate stays valid when gRPC closes its own descriptor and the kernel gives the number to another file.
    """
    for descriptor in descriptors:
        found = _duplicate_of(descriptor)
        if found is None:
            continue
        if _is_tcp_of(found, port):
            yield descriptor, found
        else:
            found.close()


def _duplicate_of(descriptor: int) -> socket.socket | None:
    """Return a duplicate of a socket; None if the number is closed by now, or of another file, which stays as it is."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return None
    try:
        # Not `socket.dup`: it makes the duplicate blocking, and gRPC's socket shares the flags.
        return socket.socket(fileno=duplicate)
    except OSError:
        # Left open, it would keep open what another thread has closed, such as a pipe whose reader waits for its end.
        os.close(duplicate)
        return None


def _sockets() -> list[int]:
    """List the descriptors of our sockets; none on a system without /proc, where only gRPC sends GOAWAY."""
    descriptors = [int(entry.name) for entry in _DESCRIPTORS.iterdir()] if _DESCRIPTORS.exists() else []
    return [descriptor for descriptor in descriptors if _is_socket(descriptor)]


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:  # Closed in the meantime, as the descriptor of the listing itself is.
        return False


def _is_tcp_of(found: socket.socket, port: int) -> bool:
    is_tcp = found.family in _FAMILIES and found.type == socket.SOCK_STREAM
    return is_tcp and found.getsockname()[1] == port


def _unreachable_socket() -> socket.socket:
    unreachable = socket.socket(socket.AF_UNIX)
    unreachable.bind("")  # Linux gives it a random abstract name.
    unreachable.listen()
    return unreachable


def _peer(host: str, port: int) -> Peer:
    return _plain(host), port


@lru_cache(maxsize=4_096)  # A sweep reads the addresses of all connections.
def _plain(host: str) -> str:
    """Return an IPv4 address that is written as IPv6 as IPv4, and any other in its usual form."""
    address = ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
