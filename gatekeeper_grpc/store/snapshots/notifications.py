"""Listens for the revisions that commits announce."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from psycopg import sql

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.store.mutations import CHANNEL
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.errors import translated_errors
from gatekeeper_grpc.store.postgres.retries import retry_conflicts
from gatekeeper_grpc.store.postgres.servers import ServerConnection

_log = structlog.get_logger(__name__)

# Each beat wakes every listening connection of the database for a moment, those of other instances too.
_BEAT_EVERY_S = 5.0
_BEAT_WITHIN_S = 2.0


class RevisionListener:
    """A LISTEN on a connection of its own, outside the pool.

    A connection that hears nothing looks like one to which nothing is said. So the listener sends itself a beat through
    the pool, as another instance would, and gives up a connection that does not hear it: because a pooler between here
    and PostgreSQL drops LISTEN, or because this is still the old primary after a failover.
    """

    name = "postgresql"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._has_warned = False

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], list[int]]]:
        """LISTEN for the length of a block; the function yielded waits that many seconds for announced revisions.

        What is announced while nobody listens is lost: whoever enters must look at the head once. `Unavailable` when
        the connection cannot be made, is lost, or has gone deaf; each wait begins by proving that it is alive.
        """
        with self._database.dedicated() as conn:
            ear = _Ear(self._database, conn)
            try:
                yield ear.wait
            except _Deaf:
                if not ear.has_heard:
                    self._warn()
                raise
            finally:
                self._has_warned = self._has_warned and not ear.has_heard

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "announcements_swallowed",
                remedy="DATABASE_URL leads to a pooler in transaction mode, which drops LISTEN: let it lead to"
                " PostgreSQL itself or to a pooler in session mode. Until then changes of others are found by poll",
            )


class _Deaf(Unavailable):
    """What is announced is not heard on this connection."""


class _Ear:
    def __init__(self, database: Database, conn: ServerConnection) -> None:
        self._database = database
        self._conn = conn
        self._beats = f"gatekeeper_beat_{secrets.token_hex(8)}"
        self._beat_due_at = time.monotonic()
        self._unheard_since: float | None = None
        self.has_heard = False
        for channel in (CHANNEL, self._beats):
            conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def wait(self, timeout_s: float) -> list[int]:
        """Wait for announced revisions, at most that long."""
        if not self._database.is_current(self._conn):
            raise Unavailable("the database is another server now", retry_after_s=1.0)
        if time.monotonic() >= self._beat_due_at and self._unheard_since is None:
            self._beat()
        deadline = time.monotonic() + timeout_s
        with translated_errors():
            self._conn.execute("SELECT 1")
            while not (revisions := self._heard(deadline - time.monotonic())) and time.monotonic() < deadline:
                pass
        self._check()
        return revisions

    @retry_conflicts
    def _beat(self) -> None:
        with self._database.write() as conn:
            conn.execute("SELECT pg_notify(%s, '')", [self._beats])
        self._unheard_since = time.monotonic()
        self._beat_due_at = self._unheard_since + _BEAT_EVERY_S

    def _heard(self, timeout_s: float) -> list[int]:
        revisions = []
        for notify in self._conn.notifies(timeout=max(0.0, timeout_s), stop_after=1):
            if notify.channel == self._beats:
                self.has_heard, self._unheard_since = True, None
            else:
                revisions.append(int(notify.payload))
        return revisions

    def _check(self) -> None:
        if self._unheard_since is not None and time.monotonic() - self._unheard_since > _BEAT_WITHIN_S:
            raise _Deaf("what is announced is not heard", retry_after_s=1.0)
