"""Notices a database that hangs, and frees whoever waits for it.

A server that is stopped, or a network that swallows packets, closes no connection: a statement waits for ever, for its
timeout is the server's to keep. So one connection asks `SELECT 1` all the time. When that is not answered the database
counts as hung: the sockets of all connections in use are shut down, which wakes the threads that wait on them, and
nobody gets a connection until the question is answered again. A statement that takes long is never cut by this: the
server goes on answering on the other connection.

One thing has no timeout of the server's at all: a COMMIT that waits for a synchronous standby which is gone. Whoever
commits says until when to wait.
"""

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from enum import Enum, auto

import psycopg
import structlog
from psycopg import pq

from gatekeeper_grpc.scheduler import RepeatingThread
from gatekeeper_grpc.store.postgres.servers import ServerConnection, Servers

_log = structlog.get_logger(__name__)

# Asking takes 0.1 ms of a server. With 0.75 s for the answer, whoever is caught by a hang waits for less than a second.
_ASK_EVERY_S = 0.2
_SLICE_S = 0.05


class Answer(Enum):
    """What became of a question."""

    CAME = auto()
    REFUSED = auto()
    """It was not put: the server, or its machine, said no. It is down, and whoever asks it finds out as quickly."""
    SILENCE = auto()


class _Line:
    """The socket of a connection in use."""

    def __init__(self, conn: psycopg.Connection) -> None:
        # A descriptor of our own: the connection's may be closed, and its number be somebody else's, when we cut it.
        self._socket = socket.socket(fileno=os.dup(conn.fileno()))
        self.answer_by = math.inf

    def cut(self) -> None:
        """Wake whoever waits for an answer; a word to the kernel, which waits for nobody."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give up the descriptor."""
        self._socket.close()


class HangWatch:
    """Watches one database from `start` to `close`; before `start` it never counts as hung.

    Args:
        servers: Where to connect.
        on_hang: Called once when the database hangs, after the connections in use were cut.
    """

    def __init__(self, servers: Servers, *, on_hang: Callable[[], object]) -> None:
        self._servers = servers
        self._on_hang = on_hang
        self._hung_after_s = 0.0
        self._conn: ServerConnection | None = None
        self._hung = False
        self._in_use: dict[psycopg.Connection, _Line] = {}
        self._lock = threading.Lock()  # guards the two above
        self._asking = RepeatingThread("hang_watch", self._look, interval_s=_ASK_EVERY_S)

    def start(self, *, hung_after_s: float) -> None:
        """Begin to ask; a question unanswered for `hung_after_s` means that the database hangs."""
        self._hung_after_s = hung_after_s
        self._asking.start()

    def close(self) -> None:
        """Stop asking."""
        self._asking.close()
        self._drop()

    def is_hung(self) -> bool:
        """Whether it is of no use to ask the database anything."""
        return self._hung

    @contextmanager
    def guard(self, conn: psycopg.Connection) -> Iterator[None]:
        """Use a connection: should the database hang meanwhile, what waits for it fails.

        `OperationalError` when it hangs already.
        """
        with closing(_Line(conn)) as line:
            self._register(conn, line)
            try:
                yield
            finally:
                with self._lock:
                    del self._in_use[conn]

    def expect_answer(self, conn: psycopg.Connection, *, within_s: float) -> None:
        """Have a connection cut if it is in use for so long from now, whether the database hangs or not."""
        self._in_use[conn].answer_by = time.monotonic() + within_s

    def _register(self, conn: psycopg.Connection, line: _Line) -> None:
        with self._lock:
            if self._hung:
                raise psycopg.OperationalError("the database does not answer")
            self._in_use[conn] = line

    def _look(self) -> None:
        self._cut_overdue()
        answer = self._ask()
        if answer is Answer.SILENCE and not self._hung:
            self._cut()
        elif answer is Answer.CAME and self._hung:
            self._hung = False
            _log.warning("database_answers_again")

    def _ask(self) -> Answer:
        try:
            return Answer.CAME if answers(self._connection(), within_s=self._hung_after_s) else self._silence()
        except psycopg.OperationalError:
            # A connection that is slow in coming, too: that may have reasons of its own, such as a lock on the
            # database, and is none to cut those in use. Who asks for one waits for as long as the pool lets him.
            self._drop()
            return Answer.REFUSED

    def _silence(self) -> Answer:
        # When the database is back this connection may not be: the network may have forgotten it, or another server
        # be primary.
        self._drop()
        return Answer.SILENCE

    def _connection(self) -> ServerConnection:
        if self._conn is not None and not self._servers.is_current(self._conn):
            self._drop()
        if self._conn is None:
            self._conn = self._servers.connect(abandon=lambda: self._asking.is_stopping)
        return self._conn

    def _drop(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _cut(self) -> None:
        with self._lock:
            self._hung = True
            cut = self._cut_those(self._in_use.values())
        _log.error("database_hung", unanswered_s=self._hung_after_s, connections_cut=cut)
        self._on_hang()

    def _cut_overdue(self) -> None:
        with self._lock:
            now = time.monotonic()
            cut = self._cut_those([line for line in self._in_use.values() if now > line.answer_by])
        if cut:
            _log.error("commit_unanswered", connections_cut=cut, remedy="look for a synchronous standby that is gone")

    def _cut_those(self, lines: Collection[_Line]) -> int:
        # Under the lock, lest a line be closed by whoever used it, and its number be somebody else's.
        for line in lines:
            line.cut()
        return len(lines)


def answers(conn: ServerConnection, *, within_s: float) -> bool:
    """Ask the server something, and tell whether it answers in time. `OperationalError` when the connection is lost.

    The time is counted in slices of our own waiting, so that a pause of the whole machine does not look like silence.
    """
    pgconn = conn.pgconn
    pgconn.send_query(b"SELECT 1")
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    for _ in range(max(1, round(within_s / _SLICE_S))):
        pgconn.flush()
        if poll.poll(_SLICE_S * 1_000):
            pgconn.consume_input()
        if not pgconn.is_busy():
            return _is_answered(pgconn)
    return False


def _is_answered(pgconn: pq.abc.PGconn) -> bool:
    succeeded = [result.status == pq.ExecStatus.TUPLES_OK for result in iter(pgconn.get_result, None)]
    if not all(succeeded):
        raise psycopg.OperationalError("the connection was ended by the server")
    return True
