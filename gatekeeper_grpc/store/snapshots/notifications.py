"""Listens for the revisions that commits announce."""

import math
import os
import secrets
import select
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from psycopg import sql

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.revision import announced_revision
from gatekeeper_grpc.store.mutations import CHANNEL
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.errors import translated_errors
from gatekeeper_grpc.store.postgres.retries import retry_conflicts
from gatekeeper_grpc.store.postgres.servers import ServerConnection

_log = structlog.get_logger(__name__)

# Each heartbeat wakes every listening backend of the database for a moment, those of other instances too.
_HEARTBEAT_EVERY_S = 5.0
_HEARTBEAT_WITHIN_S = 2.0
# Any role that may connect can send as many malformed announcements as it likes.
_REPORT_MALFORMED_EVERY_S = 60.0


class RevisionListener:
    """A LISTEN on a connection of its own, outside the pool.

    A connection that has stopped delivering looks like one without announcements. So the listener sends itself a
    heartbeat through the pool, as another instance would, and gives up a connection that does not deliver it: because a
    pooler between here and PostgreSQL drops LISTEN, or because this is still the old primary after a failover.
    """

    name = "postgresql"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._has_warned = False
        self._malformed = _MalformedAnnouncements()
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wakeup)

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], list[int]]]:
        """LISTEN for the length of a block; its function waits so many seconds for announced revisions.

        Announcements outside the block are lost: read the head once after entering.

        Raises:
            Unavailable: the connection cannot be made, is lost, or delivers no heartbeat. Each wait begins with a
                statement that shows whether the connection is alive.
        """
        with self._database.dedicated() as conn:
            subscription = _PostgresSubscription(self._database, conn, self._wakeup, self._malformed)
            try:
                yield subscription.wait
            except _NothingDelivered:
                if not subscription.has_delivered:
                    self._warn()
                raise
            finally:
                self._has_warned = self._has_warned and not subscription.has_delivered

    def wake(self) -> None:
        """End the current wait, or the next one, from any thread."""
        os.eventfd_write(self._wakeup, 1)

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "announcements_not_delivered",
                remedy="DATABASE_URL leads to a pooler in transaction mode, which drops LISTEN: let it lead to"
                " PostgreSQL itself or to a pooler in session mode. Until then this instance polls for changes",
            )


class _NothingDelivered(Unavailable):
    """Announcements are not delivered on this connection."""


class _MalformedAnnouncements:
    """Counts announcements that name no revision, and reports them once a minute."""

    def __init__(self) -> None:
        self._count = 0
        self._report_due_at = -math.inf

    def note(self, *, sender_pid: int) -> None:
        self._count += 1
        now = time.monotonic()
        if now >= self._report_due_at:
            # Not the payload: it is not ours, and may be anything.
            _log.warning("announcements_ignored", channel=CHANNEL, count=self._count, last_sender_pid=sender_pid)
            self._count, self._report_due_at = 0, now + _REPORT_MALFORMED_EVERY_S


class _PostgresSubscription:
    """One LISTEN, and the heartbeats that test it."""

    def __init__(
        self, database: Database, conn: ServerConnection, wakeup: int, malformed: "_MalformedAnnouncements"
    ) -> None:
        self._malformed = malformed
        self._database = database
        self._conn = conn
        self._wakeup = wakeup
        self._heartbeats = f"gatekeeper_beat_{secrets.token_hex(8)}"
        self._heartbeat_due_at = time.monotonic()
        self._missing_since: float | None = None
        self.has_delivered = False
        for channel in (CHANNEL, self._heartbeats):
            conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def wait(self, timeout_s: float) -> list[int]:
        """Wait for announced revisions, at most that long; return none when woken, or when a heartbeat is due.

        Raises:
            Unavailable: The connection is lost, or the database is another server now.
        """
        if not self._database.is_current(self._conn):
            raise Unavailable("the database is another server now", retry_after_s=1.0)
        if time.monotonic() >= self._heartbeat_due_at and self._missing_since is None:
            self._send_heartbeat()
        until = time.monotonic() + timeout_s
        with translated_errors():
            self._conn.execute("SELECT 1")
            while not (revisions := self._delivered()) and self._is_readable_by(min(until, self._next_check_at())):
                pass
        self._check()
        return revisions

    @retry_conflicts
    def _send_heartbeat(self) -> None:
        with self._database.write() as conn:
            conn.execute("SELECT pg_notify(%s, '')", [self._heartbeats])
        self._missing_since = time.monotonic()
        self._heartbeat_due_at = self._missing_since + _HEARTBEAT_EVERY_S

    def _next_check_at(self) -> float:
        if self._missing_since is None:
            return self._heartbeat_due_at
        return self._missing_since + _HEARTBEAT_WITHIN_S

    def _is_readable_by(self, deadline: float) -> bool:
        """Wait until the server has sent something; False at the deadline, or when woken.

        psycopg's own wait wakes ten times a second.
        """
        poll = select.poll()
        poll.register(self._conn.fileno(), select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1_000)
        is_woken = any(descriptor == self._wakeup for descriptor, _ in ready)
        if is_woken:
            os.eventfd_read(self._wakeup)
        return bool(ready) and not is_woken

    def _delivered(self) -> list[int]:
        """Take what the server has sent."""
        revisions = []
        for notify in self._conn.notifies(timeout=0):
            if notify.channel == self._heartbeats:
                self.has_delivered, self._missing_since = True, None
            elif (revision := announced_revision(notify.payload)) is not None:
                revisions.append(revision)
            else:
                self._malformed.note(sender_pid=notify.pid)
        return revisions

    def _check(self) -> None:
        if self._missing_since is not None and time.monotonic() - self._missing_since > _HEARTBEAT_WITHIN_S:
            raise _NothingDelivered("announcements are not delivered", retry_after_s=1.0)
