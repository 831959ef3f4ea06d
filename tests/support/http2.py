"""A connection below grpcio, in frames of HTTP/2 (RFC 9113), for what grpcio clients cannot show or do."""

import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Self

from tests.support.tls import HOST, CertificateFolder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4
_DEFAULT_WINDOW = 65_535
_MAX_FRAME = 16_384
_TIMEOUT_S = 60.0


class Http2:
    """A client's end of a connection that has sent its preface."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self._next_stream = 1
        self._initial_window = _DEFAULT_WINDOW
        self._windows = {0: _DEFAULT_WINDOW}
        self.frames: list[tuple[int, int, int, bytes]] = []
        """What `read_for` has read and not acted on: type, flags, stream and payload of each frame."""
        connection.sendall(PREFACE)
        self.send(SETTINGS, b"")

    @classmethod
    @contextmanager
    def connected(
        cls, port: int, *, source: str = "127.0.0.1", certificates: CertificateFolder | None = None
    ) -> Iterator[Self]:
        """Connect from an address of loopback for the length of the block; with `certificates`, by TLS."""
        address = ("127.0.0.1", port)
        with socket.create_connection(address, timeout=_TIMEOUT_S, source_address=(source, 0)) as plain:
            if certificates is None:
                yield cls(plain)
            else:
                with certificates.context().wrap_socket(plain, server_hostname=HOST) as secure:
                    yield cls(secure)

    def send(self, kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> None:
        """Send a frame, by default one of the connection."""
        self._connection.sendall(_frame(kind, payload, flags=flags, stream=stream))

    def send_many(self, kind: int, payload: bytes, *, count: int) -> None:
        """Send the same frame of the connection many times at once."""
        self._connection.sendall(_frame(kind, payload) * count)

    def receive(self, *kinds: int) -> tuple[int, int, bytes]:
        """Return type, flags and payload of the next frame of these types."""
        while True:
            header = self._read(9)
            payload = self._read(int.from_bytes(header[:3], "big"))
            if header[3] in kinds:
                return header[3], header[4], payload

    def open_call(self, path: str, more: Mapping[str, str] = MappingProxyType({})) -> int:
        """Send the headers of a call, and `more` of up to 127 characters each; return its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "test",
            "content-type": "application/grpc",
            "te": "trailers",
            **more,
        }
        self.send(HEADERS, b"".join(map(_literal, headers.items())), flags=END_HEADERS, stream=stream)
        self._windows[stream] = self._initial_window
        return stream

    def announce(self, stream: int, size: int) -> None:
        """Send the head of a message of `size` bytes, and nothing of the message."""
        self._send_data(stream, b"\0" + size.to_bytes(4, "big"))

    def send_message(self, stream: int, message: bytes) -> None:
        """Send a message and the end of the requests."""
        self._send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message, flags=END_STREAM)

    def fill(self, stream: int, most: int) -> int:
        """Send as much of a message as the windows allow and `most` bytes at most; return how much that was."""
        sent = 0
        while (room := min(self._windows[stream], self._windows[0], _MAX_FRAME, most - sent)) > 0:
            self._send_data(stream, bytes(room))
            sent += room
        return sent

    def read_for(self, seconds: float) -> None:
        """Read what comes: follow the windows, acknowledge settings and pings, keep the rest in `frames`."""
        deadline = time.monotonic() + seconds
        while (left_s := deadline - time.monotonic()) > 0:
            self._connection.settimeout(left_s)
            try:
                self._buffer += (read := self._connection.recv(1 << 16))
            except TimeoutError:
                break
            if not read:
                raise ConnectionResetError("the server has closed the connection")
            self._connection.settimeout(_TIMEOUT_S)
            self._handle_frames()
        self._connection.settimeout(_TIMEOUT_S)

    def _handle_frames(self) -> None:
        while len(self._buffer) >= 9 and len(self._buffer) >= (end := 9 + int.from_bytes(self._buffer[:3], "big")):
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            self._handle(frame[3], frame[4], int.from_bytes(frame[5:9], "big"), frame[9:])

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._windows[stream] = self._windows.get(stream, 0) + int.from_bytes(payload, "big")
        elif kind in (SETTINGS, PING) and not flags & ACK:
            if kind == SETTINGS:
                self._adopt(dict(struct.iter_unpack(">HI", payload)))
            self.send(kind, payload if kind == PING else b"", flags=ACK)
        else:
            self.frames.append((kind, flags, stream, payload))

    def _adopt(self, settings: dict[int, int]) -> None:
        change = settings.get(INITIAL_WINDOW_SIZE, self._initial_window) - self._initial_window
        self._initial_window += change
        for stream in self._windows.keys() - {0}:
            self._windows[stream] += change

    def _send_data(self, stream: int, data: bytes, *, flags: int = 0) -> None:
        self.send(DATA, data, flags=flags, stream=stream)
        self._windows[stream] -= len(data)
        self._windows[0] -= len(data)

    def _read(self, size: int) -> bytes:
        read = b""
        while len(read) < size:  # Not MSG_WAITALL, which TLS does not have.
            read += (part := self._connection.recv(size - len(read)))
            assert part, "the server has closed the connection"
        return read


def _frame(kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(header: tuple[str, str]) -> bytes:
    """Encode a header by HPACK (RFC 7541) without index and without Huffman coding."""
    texts = [text.encode(errors="surrogateescape") for text in header]
    return b"\0" + b"".join(bytes([len(text)]) + text for text in texts)
