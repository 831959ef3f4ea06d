"""The port that the workers share: the supervisor reserves it while no worker listens."""

import socket
from typing import Any

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.transport.listener import ListenError


class ReservedPort:
    """A bound socket that never listens: connections go to the workers, which bind the same port (SO_REUSEPORT).

    Args:
        address: Has a port; port 0 takes any free port.

    Raises:
        ListenError: Another process has the port, even one that would share it.
    """

    def __init__(self, address: ListenAddress) -> None:
        try:
            self._socket = _reserve(address)
        except OSError as exc:
            raise ListenError.at(address, exc) from exc
        self.port = int(self._socket.getsockname()[1])
        self.address = address.with_port(self.port)
        """The address for workers to listen on."""

    def close(self) -> None:
        """Release the port."""
        self._socket.close()


def _reserve(address: ListenAddress) -> socket.socket:
    family, _, _, _, sockaddr = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    if address.port:
        # Two sockets share a port only if both ask for it: one that does not ask detects any other socket.
        _bound(family, sockaddr, socket.SO_REUSEADDR).close()
    reserved = _bound(family, sockaddr, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    # SO_REUSEADDR was for connections in TIME_WAIT of an earlier process. Off again: otherwise the next supervisor
    # would not detect this socket before the workers listen.
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return reserved


def _bound(family: int, sockaddr: Any, *options: int) -> socket.socket:
    unbound = socket.socket(family)
    try:
        for option in options:
            unbound.setsockopt(socket.SOL_SOCKET, option, 1)
        unbound.bind(sockaddr)
    except OSError:
        unbound.close()
        raise
    return unbound
