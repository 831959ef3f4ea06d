"""The cap on stored attribute values that segments name: every instance holds them in memory."""

from psycopg import Cursor

from gatekeeper_grpc.domain.errors import ResourceExhausted
from gatekeeper_grpc.domain.limits import MAX_STORED_VALUES
from gatekeeper_grpc.store.postgres.database import Connection, one

_COUNT_STORED_VALUES = """
    SELECT coalesce(sum(users), 0) FROM user_attribute_counts
    WHERE name IN (SELECT unnest(attribute_names) FROM segments)
"""


def count_stored_values(conn: Connection) -> Cursor[tuple[int]]:
    """Count the stored attribute values that segments name. Nulls count."""
    return conn.execute(_COUNT_STORED_VALUES)


def check_attribute_cap(counted: Cursor[tuple[int]], *, cap: int = MAX_STORED_VALUES) -> None:
    """Check `count_stored_values`, after users or segments were written.

    Raises:
        ResourceExhausted: They are more than `cap`.
    """
    (count,) = one(counted)
    if count > cap:
        raise ResourceExhausted(
            f"segments may name {cap} stored attribute values of users in all, and with this change would name "
            f"{count}: name fewer attributes in conditions, or send them with each evaluation instead",
            metadata={"limit": str(cap), "wanted": str(count)},
        )
