"""The operations HTTP server: its pages, what it refuses, and that slow clients hold up nobody."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.operations import http_server as ops_module
from gatekeeper_grpc.operations.bearer_token import BearerToken
from gatekeeper_grpc.operations.http_server import HttpServer
from gatekeeper_grpc.operations.readiness import Readiness
from gatekeeper_grpc.transport.listener import ListenError

TIMEOUT_S = 60.0
HARDENING = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
READY = Readiness(ready=True, stale=False, revision=7, unconfirmed_s=0.5, database=True, reasons=())


class Operated(Collector):
    """What the server under test serves."""

    def __init__(self) -> None:
        self.alive = True
        self.readiness = READY
        self.token = BearerToken()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("gatekeeper_revision", "The revision.", value=7)


@pytest.fixture
def operated() -> Operated:
    return Operated()


@pytest.fixture
def port(operated: Operated) -> Iterator[int]:
    server = HttpServer(
        operated, is_alive=lambda: operated.alive, readiness=lambda: operated.readiness, token=operated.token
    )
    yield server.start(ListenAddress(host="127.0.0.1"))
    server.close()


def asked(
    port: int, path: str, *, method: str = "GET", accept: str = "", authorization: str = ""
) -> tuple[HTTPResponse, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request(method, path, headers={"Accept": accept, "Authorization": authorization})
    response = connection.getresponse()
    return response, response.read().decode()


def test_liveness_is_ok_while_alive_and_unavailable_when_hung(port: int, operated: Operated) -> None:
    alive, _ = asked(port, "/livez")
    operated.alive = False
    hung, _ = asked(port, "/livez")

    assert (alive.status, hung.status) == (200, 503)


def test_readiness_shows_why_not_and_is_not_latched(port: int, operated: Operated) -> None:
    answers = []
    for ready in (True, False, True):
        operated.readiness = replace(READY, ready=ready, reasons=("because",))
        response, body = asked(port, "/readyz")
        answers.append((response.status, json.loads(body)["ready"]))

    assert answers == [(200, True), (503, False), (200, True)]


def test_readiness_is_json_with_every_field(port: int) -> None:
    response, body = asked(port, "/readyz")

    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "ready": True,
        "stale": False,
        "revision": 7,
        "unconfirmed_s": 0.5,
        "database": True,
        "reasons": [],
    }


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
def test_metrics_come_in_the_format_that_the_scraper_asks_for(port: int, accept: str, content_type: str) -> None:
    response, body = asked(port, "/metrics", accept=accept)

    assert response.headers["Content-Type"].startswith(content_type)
    assert "gatekeeper_revision 7.0" in body.splitlines()


@pytest.mark.parametrize("path", ["/", "/metrics/", "/favicon.ico", "/livez/../readyz"])
def test_anything_else_is_not_found(port: int, path: str) -> None:
    assert asked(port, path)[0].status == 404


def test_a_query_does_not_change_the_page(port: int) -> None:
    assert asked(port, "/livez?verbose=1")[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_only_reading_is_allowed(port: int, method: str) -> None:
    response, _ = asked(port, "/livez", method=method)

    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        pytest.param("BREW /livez HTTP/1.1", b" 405 ", id="unknown method"),
        pytest.param("<script> /livez HTTP/1.1", b" 405 ", id="markup as the method"),
        pytest.param("GET /livez HTTP/9.9", b" 505 ", id="unknown version"),
        pytest.param("GET /livez and more HTTP/1.1", b" 400 ", id="no request line"),
        pytest.param(f"GET /{'x' * 70_000} HTTP/1.1", b" 414 ", id="long path"),
        pytest.param("GET /livez HTTP/1.1\r\n" + "a: b\r\n" * 200, b" 431 ", id="many headers"),
    ],
)
def test_what_is_no_request_is_refused_in_a_short_plain_text(port: int, request_line: str, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(f"{request_line}\r\n\r\n".encode())
        head, _, body = received(connection).partition(b"\r\n\r\n")

    assert status in head.splitlines()[0]
    assert b"Content-Type: text/plain; charset=utf-8" in head.splitlines()
    assert b"X-Content-Type-Options: nosniff" in head.splitlines()
    assert len(body) < 64
    assert b"<" not in body


def received(connection: socket.socket) -> bytes:
    """All that the server sends until it closes the connection, or resets it because it has not read everything."""
    parts = []
    try:
        while part := connection.recv(4096):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/nothing"])
def test_every_response_tells_browsers_to_do_nothing_with_it(port: int, path: str, method: str) -> None:
    headers = asked(port, path, method=method)[0].headers

    assert {name: headers[name] for name in HARDENING} == HARDENING


TOKEN = "canary7f3a-canary7f3a"


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN} ", 200),
        ("", 401),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer ", 401),
        ("Bearer \u00e9", 401),
    ],
    ids=["right", "spaces", "none", "bare", "other scheme", "longer", "empty", "no ASCII"],
)
def test_metrics_are_shown_with_the_token_alone(port: int, operated: Operated, authorization: str, status: int) -> None:
    operated.token.use(TOKEN)
    response, body = asked(port, "/metrics", authorization=authorization)

    assert response.status == status
    assert ("gatekeeper_revision" in body) == (status == 200)
    assert response.headers["WWW-Authenticate"] == (None if status == 200 else "Bearer")
    assert TOKEN not in body


def test_twin_without_a_token_metrics_are_shown_to_anybody(port: int) -> None:
    assert asked(port, "/metrics")[0].status == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_need_no_token(port: int, operated: Operated, path: str) -> None:
    operated.token.use(TOKEN)

    assert asked(port, path)[0].status == 200


def test_after_a_rotation_the_new_token_counts_and_the_old_one_does_not(port: int, operated: Operated) -> None:
    operated.token.use(TOKEN)
    operated.token.use(TOKEN[::-1])

    assert asked(port, "/metrics", authorization=f"Bearer {TOKEN}")[0].status == 401
    assert asked(port, "/metrics", authorization=f"Bearer {TOKEN[::-1]}")[0].status == 200


@pytest.mark.parametrize("text", ["canary7f3a", "canary7f3a canary7f3a", "canary7f3a-canary7f3\u00e9", "\n" * 20])
def test_a_token_that_no_header_could_carry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be 16 to 4096 printable ASCII characters") as refused:
        BearerToken(text)

    assert "canary7f3a" not in str(refused.value)


def test_head_is_get_without_the_body(port: int) -> None:
    whole, body = asked(port, "/readyz")
    head, nothing = asked(port, "/readyz", method="HEAD")

    assert (head.status, nothing) == (200, "")
    assert head.headers["Content-Length"] == whole.headers["Content-Length"] == str(len(body))


def test_a_page_that_fails_is_an_internal_error_without_its_text(port: int, operated: Operated) -> None:
    # pragma: allowlist nextline secret
    operated.readiness = "postgresql://user:secret@db"  # type: ignore[assignment]  # No dataclass: a bug.

    response, body = asked(port, "/readyz")

    assert (response.status, body) == (500, "internal error\n")


def test_silent_clients_hold_up_nobody_and_the_oldest_makes_room(port: int) -> None:
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT_S))
            for _ in range(2 * ops_module.MAX_CONNECTIONS)
        ]

        assert asked(port, "/livez")[0].status == 200
        assert silent[0].recv(1) == b""


def test_a_burst_of_slow_clients_does_not_exceed_the_bound_of_threads(port: int) -> None:
    before, most, over = threading.active_count(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.0005):
            most[0] = max(most[0], threading.active_count())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT_S))
        assert asked(port, "/livez")[0].status == 200
        over.set()
        watcher.join()

    assert most[0] <= before + 1 + ops_module.MAX_CONNECTIONS


def test_a_connection_is_refused_while_no_thread_ends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_module, "_END_WITHIN_S", 0.01)
    monkeypatch.setattr(ops_module, "_shut_down", lambda _connection: None)
    before = threading.active_count()
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT_S))
            for _ in range(ops_module.MAX_CONNECTIONS + 1)
        ]

        assert clients[-1].recv(1) == b""
        assert threading.active_count() <= before + ops_module.MAX_CONNECTIONS


def test_a_client_that_stays_silent_is_hung_up_on(operated: Operated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops_module._Handler, "timeout", 0.05)
    server = HttpServer(operated, is_alive=lambda: True, readiness=lambda: READY, token=BearerToken())
    address = ("127.0.0.1", server.start(ListenAddress(host="127.0.0.1")))
    with socket.create_connection(address, TIMEOUT_S) as silent:
        assert silent.recv(1) == b""
    server.close()


def test_after_close_nobody_listens(operated: Operated) -> None:
    server = HttpServer(operated, is_alive=lambda: True, readiness=lambda: READY, token=BearerToken())
    port = server.start(ListenAddress(host="127.0.0.1"))
    server.close()

    with pytest.raises(ConnectionRefusedError):
        asked(port, "/livez")


def test_an_address_of_another_machine_is_an_error(operated: Operated) -> None:
    with pytest.raises(ListenError, match="this machine has no address 203"):
        HttpServer(operated, is_alive=lambda: True, readiness=lambda: READY, token=BearerToken()).start(
            ListenAddress(host="203.0.113.1")
        )
