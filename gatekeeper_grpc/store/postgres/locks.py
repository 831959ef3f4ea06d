"""Finds the session that holds a lock which Gatekeeper waited for in vain."""

import time
from dataclasses import dataclass, field

import psycopg
from psycopg.rows import class_row


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder:
    """A session that holds a lock on a table of Gatekeeper's and is either not Gatekeeper's or not getting on.

    What PostgreSQL does not show to our role, or does not know, is None. A prepared transaction has no `pid`.
    """

    pid: int | None
    application_name: str | None
    state: str | None
    waits_for: str | None
    open_for_s: float | None
    seen_at: float = field(default_factory=time.monotonic)

    def age_s(self) -> float | None:
        """Return how old its transaction is now, if it is still open."""
        return None if self.open_for_s is None else self.open_for_s + time.monotonic() - self.seen_at


# Two kinds of locks are left out: those of readers and of vacuum, which nothing of ours waits for. Who waits for a lock
# holds some as well, and is not the cause. Of a session that gets on, the last statement is recent. The wait for a
# synchronous standby comes after the commit, and may last for ever.
_FIND = """
    WITH ours AS (
        SELECT oid FROM pg_class
        WHERE relkind IN ('r', 'p')
          AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'revision_head'::regclass)
    ), holders AS (
        SELECT DISTINCT pid FROM pg_locks held
        WHERE granted AND locktype = 'relation' AND relation IN (SELECT oid FROM ours)
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock')
          AND pid IS DISTINCT FROM pg_backend_pid()
          AND NOT EXISTS (SELECT FROM pg_locks waiting WHERE waiting.pid = held.pid AND NOT waiting.granted)
    )
    SELECT holders.pid, application_name, state, wait_event AS waits_for,
           extract(epoch FROM clock_timestamp() - xact_start)::float8 AS open_for_s
    FROM holders LEFT JOIN pg_stat_activity activity ON activity.pid = holders.pid
    WHERE activity.application_name IS DISTINCT FROM %(ours)s
       OR wait_event = 'SyncRep'
       OR state LIKE 'idle in transaction%%'
          AND clock_timestamp() - state_change > make_interval(secs => %(stuck_after_s)s)
    ORDER BY xact_start NULLS FIRST
    LIMIT 1
"""


def find_lock_holder(conn: psycopg.Connection, *, application_name: str, stuck_after_s: float) -> LockHolder | None:
    """Return the oldest session that keeps others from a lock; None if only Gatekeeper's own do, and get on.

    Args:
        conn: A connection outside a transaction.
        application_name: The name of Gatekeeper's own sessions.
        stuck_after_s: An own session that has been idle in its transaction for longer is stuck.
    """
    with conn.cursor(row_factory=class_row(LockHolder)) as cursor:
        return cursor.execute(_FIND, {"ours": application_name, "stuck_after_s": stuck_after_s}).fetchone()
