"""The connections of a port: their peers, GOAWAY on them, and no new ones."""

import os
import socket
import time

import pytest

from gatekeeper_grpc.transport.goaway import Peer, connections, peer_of, stop_accepting
from tests.support.waiting import eventually

TIMEOUT_S = 60.0


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
def test_a_peer_is_parsed_from_the_name_that_grpc_gives_it(name: str, peer: Peer | None) -> None:
    assert peer_of(name) == peer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_are_those_of_clients_of_the_port(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection((host, port), TIMEOUT_S) as client, listening.accept()[0]:
            peers = [connection.peer for connection in connections(port)]

            assert peers == [client.getsockname()[:2]]


def test_a_number_that_became_a_pipe_is_not_kept_open() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    assert list(connections(1, among=[writer])) == []
    os.close(writer)

    assert os.read(reader, 1) == b""  # Its end. BlockingIOError: somebody still has the other end.
    os.close(reader)


def test_goaway_is_one_http2_frame() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client, listening.accept()[0]:
            assert [connection.send_goaway() for connection in connections(port)] == [True]

            # RFC 9113, 6.8: length, type, flags, stream 0; last stream 2^31-1, NO_ERROR.
            assert client.recv(100).hex() == "0000080700000000007fffffff00000000"


def test_a_client_has_received_settings_after_the_first_frame() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client, listening.accept()[0] as accepted:
            before = [connection.has_received_settings() for connection in connections(port)]
            accepted.sendall(bytes(21))
            client.recv(21)
            after = [connection.has_received_settings() for connection in connections(port)]

    assert (before, after) == ([False], [True])


def test_stop_accepting_refuses_new_connections_and_keeps_open_ones() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        with socket.create_connection(address, TIMEOUT_S) as client, listening.accept()[0] as accepted:
            stop_accepting(address[1])

            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, TIMEOUT_S)
            accepted.sendall(b"still here")
            assert client.recv(100) == b"still here"


def test_an_end_is_told_and_what_was_not_received_is_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client, listening.accept()[0] as server:
            server.setblocking(False)
            sent = 0
            while (size := _sent(server, bytes(1 << 16))) > 0:
                sent += size
            assert [connection.has_unreceived() for connection in connections(port)] == [True]

            received = 0
            while received < sent:
                received += len(client.recv(1 << 20))
            assert eventually(lambda: [one.has_unreceived() for one in connections(port)] == [False])
            for connection in connections(port):
                connection.end()
            assert client.recv(1) == b""


def _sent(connection: socket.socket, content: bytes) -> int:
    try:
        return connection.send(content)
    except BlockingIOError:
        return 0


def test_no_goaway_goes_to_a_closed_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S), listening.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_WR)

            assert [connection.send_goaway() for connection in connections(port)] == [False]


def test_a_connection_that_is_disconnected_is_closed_for_its_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client, listening.accept()[0]:
            for connection in connections(port):
                connection.disconnect()

            assert client.recv(1) == b""


def test_a_connection_is_idle_since_its_client_sent_something() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client, listening.accept()[0] as accepted:
            assert eventually(lambda: idle_s(port) > 0.2)
            before = time.monotonic()
            client.sendall(b"x")
            accepted.recv(1)

            assert idle_s(port) < time.monotonic() - before + 0.1


def idle_s(port: int) -> float:
    (found,) = [connection.idle_s() for connection in connections(port)]
    return found
