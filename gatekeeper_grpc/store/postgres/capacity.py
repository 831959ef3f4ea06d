"""How many connections PostgreSQL has for this role, and what a worker needs of them."""

from dataclasses import dataclass
from typing import Final

from psycopg.rows import class_row

from gatekeeper_grpc.store.postgres.database import Database, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read

CONNECTIONS_OUTSIDE_POOL: Final = 5
"""What a worker may open in addition to its pool: to listen, for the hang watch, to prepare."""
LEAST_CONNECTIONS: Final = 3
"""What it cannot work without: one each to listen, for the hang watch, and for all calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What PostgreSQL allows, by the narrowest of its limits."""

    most: int
    """Connections that the role may have to the database."""
    limit: str
    """The limit that says so, as an operator would change it."""
    in_use: int
    """Connections that count against it now, those of others included."""


_READ = """
    WITH role AS (SELECT rolconnlimit, rolsuper, oid FROM pg_roles WHERE rolname = current_user),
    base AS (SELECT datconnlimit, oid FROM pg_database WHERE datname = current_database()),
    limits (most, "limit", in_use) AS (
        SELECT current_setting('max_connections')::int - CASE WHEN rolsuper THEN 0 ELSE
                   current_setting('superuser_reserved_connections')::int
                   + coalesce(current_setting('reserved_connections', true)::int, 0) END,
               'max_connections', (SELECT sum(numbackends)::int FROM pg_stat_database)
        FROM role
        UNION ALL
        SELECT rolconnlimit, 'CONNECTION LIMIT of the role',
               (SELECT count(*)::int FROM pg_stat_activity WHERE usesysid = role.oid)
        FROM role WHERE rolconnlimit >= 0 AND NOT rolsuper
        UNION ALL
        SELECT datconnlimit, 'CONNECTION LIMIT of the database',
               (SELECT numbackends FROM pg_stat_database WHERE datid = base.oid)
        FROM base, role WHERE datconnlimit >= 0 AND NOT rolsuper
    )
    SELECT most, "limit", in_use FROM limits ORDER BY most - in_use LIMIT 1
"""


@retry_lost_read
def capacity_of(database: Database) -> Capacity:
    """Read what is allowed and used at this moment.

    Raises:
        Unavailable: The database cannot be reached.
    """
    with database.read() as conn:
        return one(conn.cursor(row_factory=class_row(Capacity)).execute(_READ))
