"""A network that counts: a proxy in front of PostgreSQL that sees how often a transaction waits for an answer."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_BEGIN, _COMMIT = b"BEGIN ISOLATION", b"COMMIT\0"
_CHUNK_BYTES = 1 << 16


class RoundTrips:
    """Counts, for each committed transaction, how often its client spoke after the server had, BEGIN and COMMIT too."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._lock = threading.Lock()  # guards the counts

    def add(self, count: int) -> None:
        """Take the count of a transaction."""
        with self._lock:
            self._counts.append(count)

    def taken(self) -> list[int]:
        """Return the counts since the last call."""
        with self._lock:
            taken, self._counts = self._counts, []
        return taken


@contextmanager
def counting_proxy(port: int) -> Iterator[tuple[int, RoundTrips]]:
    """Forward a port of its own to a port of loopback; yield it with what it counts. The connections must be plain."""
    counts = RoundTrips()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, port, counts), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], counts
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, port: int, counts: RoundTrips) -> None:
    with suppress(OSError):  # The listener was shut down.
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=_carry, args=(client, server, _Conversation(counts)), daemon=True).start()


def _carry(client: socket.socket, server: socket.socket, conversation: "_Conversation") -> None:
    with client, server:
        answers = threading.Thread(target=_pump, args=(server, client, conversation.answered), daemon=True)
        answers.start()
        _pump(client, server, conversation.asked)
        answers.join()


class _Conversation:
    def __init__(self, counts: RoundTrips) -> None:
        self._counts = counts
        self._is_answered = True
        self._count = 0

    def asked(self, data: bytes) -> None:
        if _BEGIN in data:
            self._count, self._is_answered = 0, True
        self._count += self._is_answered
        self._is_answered = False
        if _COMMIT in data:
            self._counts.add(self._count)

    def answered(self, _data: bytes) -> None:
        self._is_answered = True


def _pump(source: socket.socket, sink: socket.socket, note: Callable[[bytes], None]) -> None:
    with suppress(OSError):  # Either side was closed.
        while data := source.recv(_CHUNK_BYTES):
            note(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
