"""The chaos proxy does to connections what each mode says, and is harmless in the first."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.proxy import ChaosProxy, Mode, proxied

TIMEOUT_S = 60.0
SILENCE_S = 0.2


@pytest.fixture(params=["tcp", "unix"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ChaosProxy]:
    """A proxy before a server that sends back what it gets."""
    if request.param == "unix":
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "socket"))
        server.listen()
    else:
        server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=echo_all, args=(server,), daemon=True).start()
    upstream = tmp_path / "socket" if request.param == "unix" else server.getsockname()[1]
    with proxied(upstream) as proxy:
        yield proxy
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    server.close()


def echo_all(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        while data := connection.recv(1024):
            connection.sendall(data)


def connect(proxy: ChaosProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_S)


def exchange(connection: socket.socket, message: bytes) -> bytes:
    connection.sendall(message)
    return connection.recv(1024)


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(SILENCE_S)
    try:
        connection.recv(1024)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(TIMEOUT_S)
    return False


def test_passing_carries_both_ways_and_ends_when_the_client_does(proxy: ChaosProxy) -> None:
    with connect(proxy) as connection:
        assert exchange(connection, b"hello") == b"hello"
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1024) == b""


def test_blackhole_holds_back_what_is_sent_until_it_is_over(proxy: ChaosProxy) -> None:
    with connect(proxy) as old, proxy.broken(Mode.BLACKHOLE), connect(proxy) as new:
        for connection in (old, new):
            connection.sendall(b"held")
            assert is_silent(connection)
        proxy.switch(Mode.PASS)
        assert (old.recv(1024), new.recv(1024)) == (b"held", b"held")


def test_blackhole_hides_that_the_other_side_has_gone(proxy: ChaosProxy) -> None:
    with connect(proxy) as connection, proxy.broken(Mode.BLACKHOLE):
        connection.shutdown(socket.SHUT_WR)
        assert is_silent(connection)


def test_half_open_carries_questions_and_no_answers(proxy: ChaosProxy) -> None:
    with connect(proxy) as connection:
        exchange(connection, b"before")
        with proxy.broken(Mode.HALF_OPEN):
            connection.sendall(b"answered")
            assert is_silent(connection)
        assert connection.recv(1024) == b"answered"


def test_latency_delays_every_chunk(proxy: ChaosProxy) -> None:
    with connect(proxy) as connection, proxy.broken(Mode.LATENCY, latency_s=0.1):
        began = time.monotonic()
        exchange(connection, b"slow")
        assert time.monotonic() - began >= 0.2


def test_reset_cuts_old_connections_and_new_ones(proxy: ChaosProxy) -> None:
    with connect(proxy) as old:
        exchange(old, b"before")
        with proxy.broken(Mode.RESET):
            with pytest.raises(ConnectionResetError):
                old.recv(1024)
            with pytest.raises(ConnectionError), connect(proxy) as new:
                exchange(new, b"hello")
        with connect(proxy) as after:
            assert exchange(after, b"after") == b"after"


def test_refusing_proxy_listens_on_the_same_port_afterwards(proxy: ChaosProxy) -> None:
    with proxy.broken(Mode.REFUSE), pytest.raises(ConnectionRefusedError):
        connect(proxy)
    with connect(proxy) as after:
        assert exchange(after, b"after") == b"after"


def test_server_that_is_away_resets_its_clients() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with proxied(port) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as connection:
        connection.recv(1024)
