"""gRPC over HTTP/2 from any address of loopback, for what grpcio clients do not do: hold, announce, flood, stay silent.

One thread may have hundreds of connections: `Crowd.poll` reads whatever has come on any of them.
"""

import base64
import selectors
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError, StreamClosedError

Metadata = tuple[tuple[str, str], ...]

_READ_BYTES = 1 << 16
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}
NEVER_BEGUN = "REFUSED_STREAM"
"""The call has not reached the server: clients may send it again at once, and grpcio tells them UNAVAILABLE."""


@dataclass(slots=True)
class Tally:
    """How calls ended, as their client sees it."""

    codes: Counter[str] = field(default_factory=Counter)
    in_words: Counter[str] = field(default_factory=Counter)
    """Of those, by code, the ones with a text."""
    retry_info: int = 0
    """Calls that were refused with RESOURCE_EXHAUSTED and told when to come back."""
    slowest_s: dict[str, float] = field(default_factory=dict)
    """How long a call took at most until it ended, by code."""
    losses: Counter[str] = field(default_factory=Counter)
    """Why connections were lost."""

    def document(self) -> dict[str, object]:
        """What it holds, as JSON has it."""
        return {
            "codes": dict(self.codes),
            "in_words": dict(self.in_words),
            "retry_info": self.retry_info,
            "slowest_s": self.slowest_s,
            "losses": dict(self.losses),
        }


class Connection:
    """One connection from an address of loopback; for a thread that polls the `Crowd` it belongs to."""

    def __init__(self, port: int, source: str, tls: ssl.SSLContext | None = None) -> None:
        self.socket = dialled(port, source)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket)
        self.http2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.open: dict[int, float] = {}
        """Streams that have not ended, and when they began."""
        self.unsent: dict[int, memoryview] = {}
        """What streams still have to send, once they may."""
        self.http2.initiate_connection()
        # Answers must not wait for us; what we hold back is requests.
        self.http2.increment_flow_control_window(1 << 24)
        self.flush()
        self.socket.setblocking(False)

    def call(self, path: str, *messages: bytes, metadata: Metadata = (), ends: bool = True) -> int:
        """Open a call and send whole messages; `ends` tells the server that there are no more."""
        return self.call_raw(path, b"".join(map(framed, messages)), metadata=metadata, ends=ends)

    def call_raw(self, path: str, data: bytes, *, metadata: Metadata = (), ends: bool = False) -> int:
        """Open a call and send bytes, as fast as the server takes them; the next `flush` gives them to the kernel."""
        stream = self.http2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata,
        ]
        self.http2.send_headers(stream, headers)
        self.open[stream] = time.monotonic()
        if data:
            self.unsent[stream] = memoryview(data)
            self._send_what_may_be_sent()
        if ends and stream not in self.unsent:
            self.http2.end_stream(stream)
        return stream

    def send(self, stream: int, message: bytes) -> None:
        """Send one more message of a call that is open."""
        if stream in self.open:
            self.unsent[stream] = memoryview(bytes(self.unsent.get(stream, b"")) + framed(message))
            self._send_what_may_be_sent()
            self.flush()

    def receive(self) -> list[Event]:
        """Read what has come.

        Raises:
            ConnectionError: The server has closed the connection.
        """
        try:
            data = self.socket.recv(_READ_BYTES)
        except _NOT_NOW:
            return []
        if not data:
            raise ConnectionResetError
        # What TLS has decrypted already does not wake a selector.
        while isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            data += self.socket.recv(_READ_BYTES)
        events = self.http2.receive_data(data)
        for event in events:
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                self.http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._send_what_may_be_sent()
        self.flush()
        return events

    def flush(self) -> None:
        """Give the kernel what is to be sent; a peer that does not read is waited for."""
        data = memoryview(self.http2.data_to_send())
        while data:
            try:
                data = data[self.socket.send(data) :]
            except _NOT_NOW:
                time.sleep(0.001)

    def _send_what_may_be_sent(self) -> None:
        for stream, data in [*self.unsent.items()]:
            sent = 0
            with suppress(StreamClosedError):  # The server has reset it: `Crowd.poll` is about to learn that.
                sent = self._send_part(stream, data)
            if 0 < sent < len(data):
                self.unsent[stream] = data[sent:]
            elif sent:
                del self.unsent[stream]

    def _send_part(self, stream: int, data: memoryview) -> int:
        """Send as much as the server takes; returns how much."""
        room = min(self.http2.local_flow_control_window(stream), len(data))
        largest = self.http2.max_outbound_frame_size
        for start in range(0, room, largest):
            self.http2.send_data(stream, bytes(data[start : min(start + largest, room)]))
        return max(0, room)


class Crowd:
    """Connections that one thread keeps, by TLS if `tls` is set. Counts how their calls end, in `tally`."""

    def __init__(self, port: int, *, tls: bool = False) -> None:
        self.tally = Tally()
        self._port = port
        self._tls = _trusting() if tls else None
        self._selector = selectors.DefaultSelector()

    def connect(self, source: str) -> Connection | None:
        """Make a connection; None if the server does not take it."""
        try:
            connection = Connection(self._port, source, self._tls)
        except OSError as error:
            self.tally.losses[f"not connected: {error}"] += 1
            return None
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def dial(self, source: str, begin: bytes) -> socket.socket | None:
        """Connect without HTTP/2, send some bytes, and leave the connection to the caller; None if it is not taken."""
        try:
            connection = dialled(self._port, source)
            connection.sendall(begin)
        except OSError as error:
            self.tally.losses[f"not connected: {error}"] += 1
            return None
        connection.setblocking(False)
        return connection

    def __iter__(self) -> Iterator[Connection]:
        return iter([key.data for key in self._selector.get_map().values()])

    def __len__(self) -> int:
        return len(self._selector.get_map())

    def poll(self, timeout_s: float) -> None:
        """Read from all connections that have something, and count the calls that have ended."""
        for key, _ in self._selector.select(timeout_s):
            connection: Connection = key.data
            try:
                for event in connection.receive():
                    self._count(connection, event)
            except (OSError, ProtocolError) as error:
                self._drop(connection, error)

    def open_calls(self) -> int:
        """How many calls are open."""
        return sum(len(connection.open) for connection in self)

    def close(self) -> None:
        """Close all connections."""
        for connection in self:
            self._selector.unregister(connection.socket)
            connection.socket.close()
        self._selector.close()

    def _count(self, connection: Connection, event: Event) -> None:
        if isinstance(event, (TrailersReceived, ResponseReceived)):
            status = {str(name): str(value) for name, value in event.headers or ()}
            if "grpc-status" in status:
                self._end(connection, int(event.stream_id or 0), status)
        elif isinstance(event, StreamReset):
            # All else is CANCELLED for a grpcio client, as if it had cancelled the call itself.
            code = NEVER_BEGUN if event.error_code == ErrorCodes.REFUSED_STREAM else "CANCELLED"
            # A server resets a stream that it has answered, if the client has not ended it.
            if connection.open.pop(int(event.stream_id or 0), None):
                self.tally.codes[code] += 1
            connection.unsent.pop(int(event.stream_id or 0), None)
        elif isinstance(event, ConnectionTerminated):
            raise ConnectionResetError

    def _end(self, connection: Connection, stream: int, status: dict[str, str]) -> None:
        took_s = time.monotonic() - connection.open.pop(stream)
        connection.unsent.pop(stream, None)
        code = _CODES.get(status["grpc-status"], "UNKNOWN")
        self.tally.codes[code] += 1
        self.tally.slowest_s[code] = max(took_s, self.tally.slowest_s.get(code, 0.0))
        self.tally.in_words[code] += bool(status.get("grpc-message"))
        details = base64.b64decode(status.get("grpc-status-details-bin", "") + "==")
        self.tally.retry_info += code == "RESOURCE_EXHAUSTED" and b"google.rpc.RetryInfo" in details

    def _drop(self, connection: Connection, error: Exception) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self.tally.losses[repr(error)] += 1


def dialled(port: int, source: str) -> socket.socket:
    """Connect from an address of loopback."""
    return socket.create_connection(("127.0.0.1", port), timeout=5.0, source_address=(source, 0))


def _trusting() -> ssl.SSLContext:
    """What an attacker connects with, who does not care whom he attacks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def framed(message: bytes) -> bytes:
    """Put a message in the frame of gRPC."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def announced(size: int, sent: int) -> bytes:
    """The begin of a message of `size` bytes, of which `sent` are there."""
    return b"\0" + size.to_bytes(4, "big") + bytes(sent)
