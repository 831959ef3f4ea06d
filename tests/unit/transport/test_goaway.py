"""The connections of a port: who is called what, and a goodbye between frames."""

import socket

import pytest

from gatekeeper_grpc.transport.goaway import Peer, connections, peer_of, stop_accepting

TIMEOUT_S = 10.0


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("ipv4:127.0.0.1:4711", ("127.0.0.1", 4711)),
        ("ipv6:%5B::1%5D:4711", ("::1", 4711)),
        ("ipv6:%5B::ffff:10.0.0.1%5D:4711", ("10.0.0.1", 4711)),
        ("unix-abstract:gatekeeper", None),
        ("unix:", None),
    ],
)
def test_a_client_is_known_by_the_name_that_grpc_gives_it(name: str, peer: Peer | None) -> None:
    assert peer_of(name) == peer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_are_those_that_clients_opened_to_the_port(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection((host, port), TIMEOUT_S) as client, listening.accept()[0]:
            with connections(port) as found:
                peers = [connection.peer for connection in found]

            assert peers == [client.getsockname()[:2]]


def test_a_goodbye_is_one_http2_frame() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client, listening.accept()[0]:
            with connections(port) as found:
                assert [connection.send_goaway() for connection in found] == [True]

            # RFC 9113, 6.8: length, type, flags, stream 0; last stream 2^31-1, NO_ERROR.
            assert client.recv(100).hex() == "0000080700000000007fffffff00000000"


def test_a_client_is_greeted_once_it_has_the_first_frame() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client, listening.accept()[0] as accepted:
            with connections(port) as found:
                before = [connection.has_received_settings() for connection in found]
            accepted.sendall(bytes(21))
            client.recv(21)
            with connections(port) as found:
                after = [connection.has_received_settings() for connection in found]

    assert (before, after) == ([False], [True])


def test_after_listening_stopped_connections_stay_and_newcomers_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        with socket.create_connection(address, TIMEOUT_S) as client, listening.accept()[0] as accepted:
            stop_accepting(address[1])

            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, TIMEOUT_S)
            accepted.sendall(b"still here")
            assert client.recv(100) == b"still here"


def test_a_goodbye_to_who_has_gone_is_not_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT_S),
            listening.accept()[0] as accepted,
            connections(port) as found,
        ):
            accepted.shutdown(socket.SHUT_WR)

            assert [connection.send_goaway() for connection in found] == [False]
