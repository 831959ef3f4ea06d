"""The shared port: reserved while no worker listens, refused if another process has it."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.fleet.port import ReservedPort
from gatekeeper_grpc.transport.listener import ListenError

TIMEOUT_S = 60.0


@pytest.fixture
def reserved() -> Iterator[ReservedPort]:
    port = ReservedPort(ListenAddress.parse("127.0.0.1:0"))
    yield port
    port.close()


def shared_socket(port: int) -> socket.socket:
    """What a worker binds, as gRPC does."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", port))
    return one


def test_port_0_is_any_free_one(reserved: ReservedPort) -> None:
    assert reserved.port > 0
    assert str(reserved.address) == f"127.0.0.1:{reserved.port}"


def test_workers_listen_on_it_and_nothing_listens_before_them(reserved: ReservedPort) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", reserved.port), TIMEOUT_S)
    with shared_socket(reserved.port) as first, shared_socket(reserved.port) as second:
        first.listen()
        second.listen()
        socket.create_connection(("127.0.0.1", reserved.port), TIMEOUT_S).close()


def test_another_supervisor_is_refused_even_before_the_workers_listen(reserved: ReservedPort) -> None:
    with pytest.raises(ListenError, match=f"cannot listen on {reserved.address}: another process listens there"):
        ReservedPort(reserved.address)


@pytest.mark.parametrize("option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_with_a_listener_is_refused(option: int | None) -> None:
    with socket.socket() as stranger:
        if option is not None:
            stranger.setsockopt(socket.SOL_SOCKET, option, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()

        with pytest.raises(ListenError):
            ReservedPort(ListenAddress.parse(f"127.0.0.1:{stranger.getsockname()[1]}"))


def test_connections_that_linger_after_a_server_do_not_keep_the_port(reserved: ReservedPort) -> None:
    with socket.create_server(("127.0.0.1", 0)) as earlier:
        port = earlier.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client:
            earlier.accept()[0].close()  # First to hang up: its side lingers.
            client.recv(1)

    with closing(ReservedPort(ListenAddress.parse(f"127.0.0.1:{port}"))) as again:
        assert again.port == port


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ListenError, match="this machine has no address 203"):
        ReservedPort(ListenAddress(host="203.0.113.1"))
