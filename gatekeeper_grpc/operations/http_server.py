"""The operations HTTP server: `/metrics` for Prometheus, `/livez` and `/readyz` for orchestrators.

Only `/metrics` can ask for a token: it belongs on a loopback or otherwise private address.
"""

import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import MappingProxyType
from typing import Any, NamedTuple

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.operations.bearer_token import BearerToken
from gatekeeper_grpc.operations.readiness import Readiness
from gatekeeper_grpc.scheduler import RepeatingThread
from gatekeeper_grpc.transport.listener import ListenError

_log = structlog.get_logger(__name__)

# A client may take this long between two bytes.
_READ_TIMEOUT_S = 5.0
# Each has a thread. One more connection closes the oldest, never the newest.
MAX_CONNECTIONS = 32
# How long a closed connection's thread may take to end before a new connection is refused.
_END_WITHIN_S = 1.0
# Of every response, so that a browser that is led here shows nothing, keeps nothing and takes nothing for a script.
_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)


class Page(NamedTuple):
    """An HTTP response."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = MappingProxyType({})


_MakePage = Callable[[Message], Page]  # From the headers of the request.


class HttpServer:
    """Serves `/metrics`, `/livez` and `/readyz` over HTTP, from `start` to `close`.

    Every connection has a thread of its own, so a slow client delays no other. A page is made when it is requested.

    Args:
        metrics: What `/metrics` shows.
        is_alive: `/livez` is 200 while this is true, else 503.
        readiness: `/readyz` shows it, with 200 while it is ready, else 503.
        token: What `/metrics` asks for. The others ask for nothing: a kubelet has no token.
    """

    def __init__(
        self,
        metrics: Collector,
        *,
        is_alive: Callable[[], bool],
        readiness: Callable[[], Readiness],
        token: BearerToken,
    ) -> None:
        registry = CollectorRegistry()
        registry.register(metrics)
        self._pages: Mapping[str, _MakePage] = {
            "/metrics": lambda headers: _metrics(registry, headers, token),
            "/livez": lambda _headers: _livez(alive=is_alive()),
            "/readyz": lambda _headers: _readyz(readiness()),
        }
        self._server: _Server | None = None
        self._accepting: RepeatingThread | None = None

    def start(self, address: ListenAddress, tls: Callable[[], ssl.SSLContext] | None = None) -> int:
        """Listen on an address that has a port, and return the port.

        Args:
            address: Where to listen.
            tls: Asked at each connection what to accept it with. None: plaintext.

        Raises:
            ListenError: The address cannot be listened on.
        """
        try:
            self._server = _Server((address.host, address.port), self._pages, tls)
        except OSError as exc:
            raise ListenError.at(address, exc) from exc
        # Sleeps until a client connects; `serve_forever` would poll.
        self._accepting = RepeatingThread("ops", self._server.handle_request, interval_s=0.0)
        self._accepting.start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening, and close all connections."""
        if self._server is None or self._accepting is None:
            return
        self._accepting.stop()
        _shut_down(self._server.socket)  # It wakes the thread that waits for it.
        self._accepting.close()
        self._server.server_close()
        self._server = None


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], pages: Mapping[str, _MakePage], tls: Callable[[], ssl.SSLContext] | None
    ) -> None:
        self.pages = pages
        self._tls = tls
        self._lock = threading.Lock()  # guards _serving
        # The connection of each thread, in the order of arrival. A thread counts until it has ended.
        self._serving: dict[threading.Thread, socket.socket] = {}
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; its thread has the handshake, which may take long."""
        connection, peer = super().get_request()
        if self._tls is not None:
            connection = self._tls().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, peer

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread of its own, once there is room for one; refuse it if none becomes free."""
        if not self._make_room():
            self.shutdown_request(request)
            return
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._lock:
            self._serving[thread] = request
        thread.start()

    def _make_room(self) -> bool:
        """Close the oldest connection if there are too many; return whether its thread has ended."""
        with self._lock:
            self._serving = {thread: connection for thread, connection in self._serving.items() if thread.is_alive()}
            if len(self._serving) < MAX_CONNECTIONS:
                return True
            oldest, connection = next(iter(self._serving.items()))
        _shut_down(connection)
        oldest.join(_END_WITHIN_S)
        return not oldest.is_alive()

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            for connection in self._serving.values():
                _shut_down(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """Log bugs only: a connection that fails is the client's to notice."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("http_request_failed")


def _shut_down(connection: socket.socket) -> None:
    try:
        # Not that of `SSLSocket`: it takes TLS from the thread that reads.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:  # It is closed already.
        return


class _Handler(BaseHTTPRequestHandler):
    """Handles one request and closes the connection. The standard library finds the methods by their names."""

    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] # The only one that makes us.
    timeout = _READ_TIMEOUT_S
    server_version = "gatekeeper"
    sys_version = ""
    # Of a request without a version: HTTP/0.9 has no status and no headers.
    default_request_version = "HTTP/1.0"

    def setup(self) -> None:
        super().setup()
        if isinstance(self.connection, ssl.SSLSocket):
            self.connection.do_handshake()

    def do_GET(self) -> None:
        self._answer(self._page())

    do_HEAD = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer what the base class refuses, in plain text; it would send an HTML page. A 501 is another method."""
        status = HTTPStatus(code)
        self._answer(_ONLY_READ if status is HTTPStatus.NOT_IMPLEMENTED else _text(status, status.phrase.lower()))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        """Log nothing: probes come every second."""

    def _page(self) -> Page:
        path = self.path.partition("?")[0]
        page = self.server.pages.get(path)
        if page is None:
            return _text(HTTPStatus.NOT_FOUND, f"there are {', '.join(self.server.pages)}")
        try:
            return page(self.headers)
        except Exception:  # noqa: BLE001 - the client gets 500, the log the reason
            _log.exception("http_page_failed", path=path)
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")

    def _answer(self, page: Page) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        for name, value in {**_HEADERS, **page.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)


def _metrics(registry: CollectorRegistry, headers: Message, token: BearerToken) -> Page:
    if not token.admits(headers.get("Authorization", "")):
        return _NO_TOKEN
    encode, content_type = choose_encoder(headers.get("Accept", ""))
    return Page(HTTPStatus.OK, encode(registry), content_type)


def _livez(*, alive: bool) -> Page:
    return _text(_status(ok=alive), "alive" if alive else _HUNG)


def _readyz(readiness: Readiness) -> Page:
    return Page(_status(ok=readiness.ready), json.dumps(asdict(readiness)).encode() + b"\n", "application/json")


def _status(*, ok: bool) -> HTTPStatus:
    return HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE


def _text(status: HTTPStatus, text: str) -> Page:
    return Page(status, f"{text}\n".encode())


_HUNG = "hung: restart the process; docs/maintaining.md says how to find out first what it waits for"
_ONLY_READ = _text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")._replace(headers={"Allow": "GET, HEAD"})
_NO_TOKEN = _text(HTTPStatus.UNAUTHORIZED, "needs the header authorization: Bearer ...")._replace(
    headers={"WWW-Authenticate": "Bearer"}
)
