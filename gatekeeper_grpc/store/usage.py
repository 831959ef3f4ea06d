"""Usage of flags in PostgreSQL: adds what instances counted, reads it, and deletes what is past its time."""

from collections.abc import Sequence
from itertools import groupby
from typing import LiteralString

from psycopg.rows import class_row

from gatekeeper_grpc.domain.commands import UsageRange
from gatekeeper_grpc.domain.evaluation import Reason, decision_of
from gatekeeper_grpc.domain.usage import (
    MAX_UNKNOWN_KEYS,
    Amount,
    DecisionCount,
    UnknownKey,
    UsageBatch,
    UsageSeries,
)
from gatekeeper_grpc.store.flags import find_flag
from gatekeeper_grpc.store.postgres.database import Database, one
from gatekeeper_grpc.store.postgres.retries import retry_conflicts, retry_lost_read

# How many rows of a kind one run of maintenance adds up or deletes.
_PRUNED_AT_ONCE = 20_000


class UsageStore:
    """How flags are used. Not a mutation: no revision, no audit entry, no lock of the head row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_conflicts
    def add(self, batch: UsageBatch) -> None:
        """Add what an instance counted, in one statement.

        Raises:
            OutcomeUnknown: The commit was not confirmed. If it was made, another attempt counts twice.
            GatekeeperError: See `Database.write`.
        """
        parameters = _parameters(batch)
        with self._database.write() as conn:
            conn.execute(ADD_USAGE, parameters)

    @retry_lost_read
    def read(self, key: str, wanted: UsageRange) -> UsageSeries:
        """Read how a flag was used.

        Raises:
            NotFound: There is no such flag.
        """
        with self._database.read() as conn:
            flag_id = find_flag(conn, key).flag_id
            rows = conn.execute(READ_SERIES, {"flag_id": flag_id, **_range(wanted)}).fetchall()
            named_time, all_flags_time, since = one(conn.execute(READ_LAST, {"flag_id": flag_id}))
        return UsageSeries(
            periods={
                start: [
                    DecisionCount(named, variant, Reason(reason), Amount(int(decisions), int(estimated)))
                    for _, named, variant, reason, decisions, estimated in found
                ]
                for start, found in groupby(rows, key=lambda row: row[0])
            },
            named_time=named_time,
            all_flags_time=all_flags_time,
            counted_since=since,
        )

    @retry_lost_read
    def unknown_keys(self) -> Sequence[UnknownKey]:
        """Read the keys that clients asked for and that no flag has, at most 1,000: the most asked for first."""
        with self._database.read() as conn, conn.cursor(row_factory=class_row(UnknownKey)) as cursor:
            return cursor.execute(LIST_UNKNOWN, {"limit": MAX_UNKNOWN_KEYS}).fetchall()

    @retry_conflicts
    def prune(self) -> int:
        """Add hourly rows of over 7 days ago to daily ones, and delete what is past its time or about no flag.

        Returns the number of rows that were added up or deleted; several instances may do it at the same time.
        """
        limits = {"limit": _PRUNED_AT_ONCE, "keys": MAX_UNKNOWN_KEYS}
        with self._database.write() as conn:
            (rolled_up,) = one(conn.execute(_ROLL_UP, limits))
            return int(rolled_up) + sum(conn.execute(statement, limits).rowcount for statement in _PRUNE)


# One statement, in which each table has its rows in the order of its key: two instances wait for each other, and do not
# deadlock. A clock that is ahead must not make a flag look used for ever.
ADD_USAGE = """
    WITH last_named AS (
        INSERT INTO flag_last_named AS l (flag_id, named_time)
        SELECT flag_id, LEAST(to_timestamp(minute), clock_timestamp())
        FROM unnest(%(named_ids)s::bigint[], %(named_minutes)s::bigint[]) AS n (flag_id, minute)
        ORDER BY flag_id
        ON CONFLICT ON CONSTRAINT flag_last_named_pkey
        DO UPDATE SET named_time = GREATEST(l.named_time, EXCLUDED.named_time)
    ), counted AS (
        INSERT INTO flag_usage AS u (flag_id, start_time, hours, named, variant, reason, decisions, estimated_decisions)
        SELECT flag_id, to_timestamp(hour), 1, named, variant, reason, decisions, estimated
        FROM unnest(%(flag_ids)s::bigint[], %(hours)s::bigint[], %(named)s::boolean[], %(variants)s::text[],
                    %(reasons)s::smallint[], %(decisions)s::bigint[], %(estimated)s::bigint[])
            AS c (flag_id, hour, named, variant, reason, decisions, estimated)
        ORDER BY flag_id, hour, named, variant, reason
        ON CONFLICT ON CONSTRAINT flag_usage_pkey
        DO UPDATE SET decisions = u.decisions + EXCLUDED.decisions,
                      estimated_decisions = u.estimated_decisions + EXCLUDED.estimated_decisions
    ), unknown AS (
        INSERT INTO unknown_flag_keys AS k (key, requests, last_asked_time)
        SELECT key, requests, LEAST(to_timestamp(minute), clock_timestamp())
        FROM unnest(%(keys)s::text[], %(requests)s::bigint[], %(key_minutes)s::bigint[]) AS a (key, requests, minute)
        ORDER BY key COLLATE "C"
        ON CONFLICT ON CONSTRAINT unknown_flag_keys_pkey
        DO UPDATE SET requests = k.requests + EXCLUDED.requests,
                      last_asked_time = GREATEST(k.last_asked_time, EXCLUDED.last_asked_time)
    )
    UPDATE usage_coverage
    SET all_flags_time = GREATEST(all_flags_time, LEAST(to_timestamp(%(all_flags)s::bigint), clock_timestamp()))
    WHERE %(all_flags)s::bigint IS NOT NULL
"""


def _parameters(batch: UsageBatch) -> dict[str, object]:
    decided = [decision_of(key.code) for key in batch.counts]
    return {
        "named_ids": [*batch.named],
        "named_minutes": [*batch.named.values()],
        "flag_ids": [key.flag_id for key in batch.counts],
        "hours": [key.hour for key in batch.counts],
        "named": [key.named for key in batch.counts],
        "variants": [variant for variant, _ in decided],
        "reasons": [int(reason) for _, reason in decided],
        "decisions": [amount.decisions for amount in batch.counts.values()],
        "estimated": [amount.estimated for amount in batch.counts.values()],
        "keys": [*batch.unknown],
        "requests": [requests.number for requests in batch.unknown.values()],
        "key_minutes": [requests.minute for requests in batch.unknown.values()],
        "all_flags": batch.all_flags,
    }


READ_SERIES = """
    SELECT date_trunc(%(step)s, start_time, 'UTC') AS start, named, variant, reason,
           sum(decisions), sum(estimated_decisions)
    FROM flag_usage
    WHERE flag_id = %(flag_id)s AND hours <= %(hours)s
      AND (%(start)s::timestamptz IS NULL OR start_time >= date_trunc(%(step)s, %(start)s::timestamptz, 'UTC'))
      AND (%(end)s::timestamptz IS NULL OR date_trunc(%(step)s, start_time, 'UTC') < %(end)s)
    GROUP BY start, named, variant, reason
    ORDER BY start, named DESC, variant, reason
"""

# Minutes are shown as they were counted: the flag existed in the minute in which one for all flags was answered.
READ_LAST = """
    SELECT (SELECT named_time FROM flag_last_named WHERE flag_id = %(flag_id)s),
           (SELECT c.all_flags_time FROM feature_flags f
            WHERE f.flag_id = %(flag_id)s AND f.create_time < c.all_flags_time + interval '1 minute'),
           c.since
    FROM usage_coverage c
"""


def _range(wanted: UsageRange) -> dict[str, object]:
    return {
        "step": "day" if wanted.by_day else "hour",
        "hours": 24 if wanted.by_day else 1,
        "start": wanted.start_time,
        "end": wanted.end_time,
    }


LIST_UNKNOWN = """
    SELECT key, requests, last_asked_time FROM unknown_flag_keys u
    WHERE last_asked_time > now() - interval '30 days'
      AND NOT EXISTS (SELECT FROM feature_flags f WHERE f.environment = '' AND f.key = u.key)
    ORDER BY requests DESC, last_asked_time DESC, key LIMIT %(limit)s
"""

# Whole days, so that a day is never hourly and daily at once for long. No clock_timestamp(): it cannot be compared by
# an index.
DUE_HOURS: LiteralString = """
    SELECT ctid FROM flag_usage
    WHERE start_time < date_trunc('day', now() - interval '7 days', 'UTC')
      AND start_time > now() - interval '91 days' AND hours = 1
    ORDER BY start_time LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""

# Rows of flags that are gone are dropped.
_ROLL_UP: LiteralString = """
    WITH hourly AS (
        DELETE FROM flag_usage WHERE ctid = ANY (ARRAY({due})) RETURNING *
    ), daily AS (
        INSERT INTO flag_usage AS u (flag_id, start_time, hours, named, variant, reason, decisions, estimated_decisions)
        SELECT h.flag_id, date_trunc('day', h.start_time, 'UTC') AS day, 24, h.named, h.variant, h.reason,
               sum(h.decisions), sum(h.estimated_decisions)
        FROM hourly h WHERE EXISTS (SELECT FROM feature_flags f WHERE f.flag_id = h.flag_id)
        GROUP BY h.flag_id, day, h.named, h.variant, h.reason
        ORDER BY h.flag_id, day, h.named, h.variant, h.reason
        ON CONFLICT ON CONSTRAINT flag_usage_pkey
        DO UPDATE SET decisions = u.decisions + EXCLUDED.decisions,
                      estimated_decisions = u.estimated_decisions + EXCLUDED.estimated_decisions
    )
    SELECT count(*) FROM hourly
""".replace("{due}", DUE_HOURS)

# Rows of the future are those of an instance whose clock was wrong. Nothing here waits for a lock: so a deadlock is
# impossible, and what is locked is deleted by the next run.
_PRUNE = (
    """
    DELETE FROM flag_usage WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM flag_usage
        WHERE start_time < now() - interval '91 days' OR start_time > now() + interval '1 day'
        LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
    """,
    """
    DELETE FROM flag_last_named WHERE ctid = ANY (ARRAY(
        SELECT l.ctid FROM flag_last_named l
        WHERE NOT EXISTS (SELECT FROM feature_flags f WHERE f.flag_id = l.flag_id)
        LIMIT %(limit)s FOR UPDATE OF l SKIP LOCKED))
    """,
    """
    DELETE FROM unknown_flag_keys WHERE ctid = ANY (ARRAY(
        SELECT u.ctid FROM unknown_flag_keys u
        WHERE last_asked_time < now() - interval '30 days'
           OR EXISTS (SELECT FROM feature_flags f WHERE f.environment = '' AND f.key = u.key)
           OR key IN (SELECT key FROM unknown_flag_keys ORDER BY requests DESC, last_asked_time DESC OFFSET %(keys)s)
        LIMIT %(limit)s FOR UPDATE OF u SKIP LOCKED))
    """,
)
