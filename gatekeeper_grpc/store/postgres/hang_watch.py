"""Hang watch: notices a database server that stops answering, and wakes the threads that wait for it.

A stopped server, or a network that drops packets, closes no connection: a statement waits for ever, because its timeout
is enforced by the server. So the watch sends `SELECT 1` over a connection of its own. If no answer comes in time, the
database counts as hung: the sockets of all connections in use are shut down, which wakes the threads that wait on them,
and no connection is handed out until an answer comes. A slow statement is never cut, because the server goes on
answering the watch.

A busy machine answers late as well, and it delays this process as much as a server next to it. While this process is
late itself, or tasks wait for a CPU, the watch waits `_BUSY_FACTOR` times as long (decision 0012 has the figures).

PostgreSQL has no timeout for a COMMIT that waits for a missing synchronous standby, or for a disk, and it must not be
cancelled: a cancelled wait for a standby is answered as a success. The transaction sets a deadline for it with
`expect_answer`, after which its socket is shut down. The server's side of the transaction goes on, and keeps its locks.
Until it ends, `has_unsettled` is true, so that no further ones pile up behind it.
"""

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import psycopg
import structlog
from psycopg import pq

from gatekeeper_grpc.scheduler import RepeatingThread
from gatekeeper_grpc.store.postgres.servers import ServerConnection, Servers

_log = structlog.get_logger(__name__)

# `SELECT 1` takes 0.1 ms of a server. With 0.75 s for the answer, a call that meets a hang waits for less than 1 s.
_ASK_EVERY_S = 0.2
# How often to ask while no transaction is open. The next transaction makes the watch ask at once.
_ASK_EVERY_AT_REST_S = 1.0
_SLICE_S = 0.05
_BUSY_FACTOR = 4
_BUSY_DEADLINE_FACTOR = 2
# The machine is busy when this share of the wait went by with this thread late, or with any task waiting for a CPU.
_BUSY_LATE_SHARE = 0.2
_BUSY_PRESSURE_SHARE = 0.5
_CPU_PRESSURE = Path("/proc/pressure/cpu")


# A backend whose client is gone ends as soon as its COMMIT does.
_UNSETTLED = "SELECT pid FROM pg_stat_activity WHERE pid IN ({}) AND state IS DISTINCT FROM 'idle'"


class Answer(Enum):
    """The outcome of one question."""

    CAME = auto()
    REFUSED = auto()
    """The server, or its machine, refused the connection: it is down, and other clients learn that as quickly."""
    SILENCE = auto()


@dataclass(slots=True, eq=False)
class _GuardedSocket:
    """The socket of a connection in use."""

    # Of our own: the connection may be closed, and the number of its descriptor reused, by the time we shut it down.
    duplicate: socket.socket
    keeps_awake: bool
    backend_pid: int
    deadline: "_Deadline | None" = None
    is_committing: bool = False


class _Deadline:
    """Until when an answer must have come; on a busy machine, `_BUSY_DEADLINE_FACTOR` times as long."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._began_at = time.monotonic()
        self._pressure_before_s = cpu_pressure_s()

    def is_over(self) -> bool:
        elapsed_s = time.monotonic() - self._began_at
        if elapsed_s < self._within_s:
            return False
        is_busy = cpu_pressure_s() - self._pressure_before_s > _BUSY_PRESSURE_SHARE * elapsed_s
        return not is_busy or elapsed_s >= _BUSY_DEADLINE_FACTOR * self._within_s


class HangWatch:
    """Watches one database from `start` to `close`; before `start` it never counts as hung.

    Args:
        servers: Makes the connections.
        on_hang: Called once when the database hangs, after the connections in use were cut.
    """

    def __init__(self, servers: Servers, *, on_hang: Callable[[], object]) -> None:
        self._servers = servers
        self._on_hang = on_hang
        self._hung_after_s = 0.0
        self._asked_at = -math.inf
        self._conn: ServerConnection | None = None
        self._hung = False
        self._in_use: dict[psycopg.Connection, _GuardedSocket] = {}
        self._unsettled: frozenset[int] = frozenset()
        self._lock = threading.Lock()  # guards the three above
        self._awake = threading.Event()  # set while a transaction is open
        self._thread = RepeatingThread("hang_watch", self._check, interval_s=_ASK_EVERY_S, wait=self._wait)

    def start(self, *, hung_after_s: float) -> None:
        """Start to ask.

        Args:
            hung_after_s: A question that is unanswered for so long means that the database hangs; on a busy machine,
                `_BUSY_FACTOR` times as long.
        """
        self._hung_after_s = hung_after_s
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._thread.stop()
        self._awake.set()
        self._thread.close()
        self._drop()

    def is_hung(self) -> bool:
        """Return whether the database counts as hung."""
        return self._hung

    def has_unsettled(self) -> bool:
        """Return whether a COMMIT that was given up still waits in the server, with the locks of its transaction."""
        return bool(self._unsettled)

    def in_use(self) -> int:
        """Return how many guarded connections wait for answers."""
        with self._lock:
            return sum(guarded.keeps_awake for guarded in self._in_use.values())

    @contextmanager
    def guard(self, conn: psycopg.Connection, *, keeps_awake: bool = True) -> Iterator[None]:
        """Use a connection during the block; if the database hangs, waiting for the connection fails.

        Args:
            conn: The connection.
            keeps_awake: Whether its user waits for answers, not for notifications: ask at the shorter interval.

        Raises:
            OperationalError: The database counts as hung.
        """
        with socket.socket(fileno=os.dup(conn.fileno())) as duplicate:
            self._register(conn, _GuardedSocket(duplicate, keeps_awake, conn.info.backend_pid))
            try:
                yield
            finally:
                self._unregister(conn)

    def expect_answer(self, conn: psycopg.Connection, *, within_s: float, is_committing: bool) -> None:
        """Cut a guarded connection if it is still in use after so long, whether the database hangs or not.

        Args:
            conn: The connection.
            within_s: How long; twice as long while the machine is busy.
            is_committing: Whether its COMMIT may go on in the server after the cut.
        """
        guarded = self._in_use[conn]
        guarded.is_committing = is_committing
        guarded.deadline = None if math.isinf(within_s) else _Deadline(within_s)

    def _register(self, conn: psycopg.Connection, guarded: _GuardedSocket) -> None:
        with self._lock:
            if self._hung:
                raise psycopg.OperationalError("the database does not answer")
            self._in_use[conn] = guarded
        if guarded.keeps_awake:
            self._awake.set()

    def _unregister(self, conn: psycopg.Connection) -> None:
        with self._lock:
            del self._in_use[conn]
            if not any(guarded.keeps_awake for guarded in self._in_use.values()):
                self._awake.clear()

    def _wait(self, interval_s: float) -> None:
        """Wait `interval_s` since the last question; longer while no transaction is open."""
        if not self._hung:
            self._awake.wait(_ASK_EVERY_AT_REST_S)
        time.sleep(max(0.0, self._asked_at + interval_s - time.monotonic()))

    def _check(self) -> None:
        self._cut_overdue()
        self._asked_at = time.monotonic()
        answer = self._ask()
        if answer is Answer.SILENCE and not self._hung:
            self._cut()
        elif answer is Answer.CAME and self._hung:
            self._hung = False
            _log.warning("database_answers_again")
        if answer is Answer.CAME and self._unsettled:
            self._check_unsettled()

    def _check_unsettled(self) -> None:
        question = _UNSETTLED.format(",".join(map(str, self._unsettled))).encode()
        try:
            pids = ask(self._connection(), question, within_s=self._hung_after_s)
        except psycopg.OperationalError:
            pids = None
        if pids is None:
            self._drop()
            return
        with self._lock:
            self._unsettled &= frozenset(map(int, pids))
        if not pids:
            _log.warning("commits_settled")

    def _ask(self) -> Answer:
        try:
            if answers(self._connection(), within_s=self._hung_after_s):
                return Answer.CAME
        except psycopg.OperationalError:
            # A server that is slow to accept a connection may have other reasons, such as a lock on the database: no
            # ground to cut the connections in use. A caller waits for a new connection until the pool's timeout.
            self._drop()
            return Answer.REFUSED
        # This connection may not survive the silence: the network may have forgotten it, or the primary have changed.
        self._drop()
        return Answer.SILENCE

    def _connection(self) -> ServerConnection:
        if self._conn is not None and not self._servers.is_current(self._conn):
            self._drop()
        if self._conn is None:
            self._conn = self._servers.connect(abandon=lambda: self._thread.is_stopping)
        return self._conn

    def _drop(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _cut(self) -> None:
        with self._lock:
            self._hung = True
            cut = self._shut_down(self._in_use.values())
        silent_s = round(time.monotonic() - self._asked_at, 2)
        _log.error("database_hung", unanswered_s=silent_s, connections_cut=cut)
        self._on_hang()

    def _cut_overdue(self) -> None:
        with self._lock:
            overdue = [each for each in self._in_use.values() if each.deadline and each.deadline.is_over()]
            cut = self._shut_down(overdue)
            for guarded in overdue:
                guarded.deadline = None
        if any(guarded.is_committing for guarded in overdue):
            _log.error(
                "commit_unanswered",
                connections_cut=cut,
                remedy="look for a synchronous standby that is gone, and for a full or slow disk of the database",
            )
        elif overdue:
            _log.warning("statement_unanswered", connections_cut=cut)

    def _shut_down(self, sockets: Collection[_GuardedSocket]) -> int:
        # Under the lock, so that no user closes its socket here, whose number could then belong to another file.
        self._unsettled |= {guarded.backend_pid for guarded in sockets if guarded.is_committing}
        for guarded in sockets:
            with suppress(OSError):  # The server may have closed it.
                guarded.duplicate.shutdown(socket.SHUT_RDWR)  # Wakes the thread that waits for an answer; never blocks.
        return len(sockets)


def answers(conn: ServerConnection, *, within_s: float) -> bool:
    """Send a question to the server, and return whether it answers in time.

    Raises:
        OperationalError: The connection is lost.
    """
    return ask(conn, b"SELECT 1", within_s=within_s) is not None


def ask(conn: ServerConnection, question: bytes, *, within_s: float) -> list[bytes] | None:
    """Send a query of one column without NULL, and return its values; None: they do not come in time.

    Raises:
        OperationalError: The connection is lost.
    """
    pgconn = conn.pgconn
    pgconn.send_query(question)
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    silence = _Silence(within_s)
    while not silence.is_too_long():
        pgconn.flush()
        if poll.poll(_SLICE_S * 1_000):
            pgconn.consume_input()
        if not pgconn.is_busy():
            return _values(pgconn)
        silence.slices += 1
    return None


class _Silence:
    """Tells a server that does not answer from a machine that is too busy.

    The bound holds for slices of the thread's own waiting, so that a paused machine does not look like a silent server.
    """

    def __init__(self, within_s: float) -> None:
        self.slices = 0
        self._within_s = within_s
        self._began_at = time.monotonic()
        self._pressure_before_s = cpu_pressure_s()

    def is_too_long(self) -> bool:
        """Return whether the silence must be the server's."""
        waited_s = self.slices * _SLICE_S
        if waited_s < self._within_s:
            return False
        elapsed_s = time.monotonic() - self._began_at
        is_busy = (
            elapsed_s - waited_s > _BUSY_LATE_SHARE * elapsed_s
            or cpu_pressure_s() - self._pressure_before_s > _BUSY_PRESSURE_SHARE * elapsed_s
        )
        return not is_busy or elapsed_s >= _BUSY_FACTOR * self._within_s


def cpu_pressure_s() -> float:
    """Return for how long, since the machine started, a task has waited for a CPU; 0 where Linux does not tell."""
    try:
        some, _, _ = _CPU_PRESSURE.read_text().partition("\n")
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):
        return 0.0


def _values(pgconn: pq.abc.PGconn) -> list[bytes]:
    results = list(iter(pgconn.get_result, None))
    if not all(result.status == pq.ExecStatus.TUPLES_OK for result in results):
        raise psycopg.OperationalError("the connection was ended by the server")
    return [result.get_value(row, 0) or b"" for result in results for row in range(result.ntuples)]
