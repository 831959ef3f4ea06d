"""Quotas: how many flags, segments and users an installation may have."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, LiteralString

from psycopg import sql

from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.domain.limits import MAX_SEGMENT_TARGETS_IN_ALL
from gatekeeper_grpc.store.postgres.database import Connection, one

# No row of these tables is smaller, so a small table needs no counting: PostgreSQL knows its size at once.
_LEAST_ROW_BYTES = 40
_TABLES: Mapping[str, LiteralString] = MappingProxyType(
    {"flags": "feature_flags", "segments": "segments", "users": "users"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """How many of each resource an installation may have. `users` are those with stored attributes."""

    flags: int = 20_000
    segments: int = 2_000
    users: int = 10_000_000

    def check(self, conn: Connection, quota: str) -> None:
        """Check the number of a resource after one was created, in the same transaction.

        Args:
            conn: The transaction, which holds the head lock, so that no other creates one.
            quota: The name of a field.

        Raises:
            ResourceExhausted: There are more than the quota.
        """
        limit: int = getattr(self, quota)
        if _most_rows(conn, _TABLES[quota]) > limit and _rows(conn, _TABLES[quota]) > limit:
            raise ResourceExhausted(
                f"this installation may have {limit} {quota}, and has them: delete some, or have the operator raise"
                f" GATEKEEPER_MAX_{quota.upper()}",
                reason="QUOTA_EXCEEDED",
                metadata={"quota": quota, "limit": str(limit)},
            )


DEFAULT_QUOTAS: Final = Quotas()


def check_segment_targets(conn: Connection, *, limit: int = MAX_SEGMENT_TARGETS_IN_ALL) -> None:
    """Check how many segment targets all flags have together, after a flag was written, in the same transaction.

    Raises:
        ResourceExhausted: There are more than `limit`.
    """
    if _most_rows(conn, "flag_segments") > limit and _rows(conn, "flag_segments") > limit:
        raise ResourceExhausted.segment_targets(limit)


def _most_rows(conn: Connection, table: LiteralString) -> int:
    """Return a number that the rows of a table cannot exceed; takes constant time."""
    (size_bytes,) = one(conn.execute("SELECT pg_relation_size(%(table)s::text::regclass)", {"table": table}))
    return int(size_bytes) // _LEAST_ROW_BYTES


def _rows(conn: Connection, table: LiteralString) -> int:
    (rows,) = one(conn.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))))
    return int(rows)
