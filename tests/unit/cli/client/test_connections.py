"""Why a server cannot be reached, of the words of gRPC. tests/rpc/cli/test_first_contact.py has it say them."""

import socket
import threading
from collections.abc import Iterator

import pytest

from gatekeeper_grpc.cli.client.connections import why_unreachable

NAME = "prod (127.0.0.1:7)"


@pytest.mark.parametrize(
    ("said", "target", "is_tls", "what", "then"),
    [
        ("last error: Connection refused", "127.0.0.1:7", False, "no server answers at", "start one with `gatekeeper"),
        ("last error: Connection refused", "db:7", True, "no server answers at", "start it, or name another"),
        ("unix:/x: No such file or directory", "unix:/x", False, "no server answers at", "start one with"),
        ("DNS resolution failed for db", "db:7", False, "its host is not known", "typing errors"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired", "db:7", True, "has expired", "have it renewed"),
        ("CERTIFICATE_VERIFY_FAILED: certificate signature failure", "db:7", True, "unknown issuer", "--tls-ca"),
        ("Socket closed", "db:7", True, "has closed the connection", "--client-cert"),
        ("words of another release", "db:7", True, "no server answers at", "start it"),
        ("Socket closed", "unix:/x", False, "has closed the connection", "start one"),
    ],
)
def test_what_grpc_says_becomes_a_line_and_what_to_do(
    said: str, target: str, *, is_tls: bool, what: str, then: str
) -> None:
    found = why_unreachable(said, NAME, target, is_tls=is_tls)

    assert (what in found[0], then in found[1]) == (True, True), found
    assert NAME in found[0]


@pytest.fixture
def hanging_up() -> Iterator[int]:
    """The port of a server that closes each connection without a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                while True:
                    listener.accept()[0].close()
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_server_that_hangs_up_is_not_said_to_speak_tls(hanging_up: int) -> None:
    target = f"127.0.0.1:{hanging_up}"

    assert why_unreachable("Socket closed", NAME, target, is_tls=False)[0] == f"{NAME} has closed the connection"
