"""A network that counts: a proxy in front of PostgreSQL that sees how often a transaction waits for an answer."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

LEVEL_OF_CHANGES, LEVEL_OF_READS = "READ COMMITTED", "REPEATABLE READ"
"""The levels of isolation at which transactions begin that change something, and those that read."""
_COMMIT = b"COMMIT\0"
_CHUNK_BYTES = 1 << 16


class RoundTrips:
    """Counts, for each committed transaction, how often its client spoke after the server had, BEGIN and COMMIT too.

    Args:
        level: Of which transactions.
    """

    def __init__(self, level: str = LEVEL_OF_CHANGES) -> None:
        self.begin = f"BEGIN ISOLATION LEVEL {level}".encode()
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
def counting_proxy(dsn: str, counts: RoundTrips) -> Iterator[str]:
    """Forward a port of loopback to a database; yield the DSN that leads through it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, conninfo_to_dict(dsn), counts), daemon=True)
        thread.start()
        try:
            port = listener.getsockname()[1]
            # What is encrypted cannot be read.
            yield make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, target: Mapping[str, Any], counts: RoundTrips) -> None:
    with suppress(OSError):  # The listener was shut down.
        while True:
            client, _ = listener.accept()
            server = _connect(target["host"], int(target.get("port") or 5432))
            threading.Thread(target=_carry, args=(client, server, _Conversation(counts)), daemon=True).start()


def _connect(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{host}/.s.PGSQL.{port}")
    return server


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
        self._is_counted = False
        self._count = 0

    def asked(self, data: bytes) -> None:
        if self._counts.begin in data:
            self._count, self._is_answered, self._is_counted = 0, True, True
        self._count += self._is_answered
        self._is_answered = False
        if _COMMIT in data and self._is_counted:
            self._counts.add(self._count)
            self._is_counted = False

    def answered(self, _data: bytes) -> None:
        self._is_answered = True


def _pump(source: socket.socket, sink: socket.socket, note: Callable[[bytes], None]) -> None:
    with suppress(OSError):  # Either side was closed.
        while data := source.recv(_CHUNK_BYTES):
            note(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
