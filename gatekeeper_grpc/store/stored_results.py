"""How many results of mutations are stored for retries: of each caller, the latest."""

from typing import Final

from gatekeeper_grpc.store.postgres.database import Connection

MAX_RESULTS_PER_ACTOR: Final = 10_000
# Sorting the results of an actor takes some 10 ms: not after each mutation.
_FORGET_EVERY = 100

_FORGET_OLDEST = """
    DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM idempotency_keys WHERE actor = %(actor)s ORDER BY revision DESC OFFSET %(limit)s
    ))
"""

_FORGET_OLDEST_OF_ALL = """
    DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM (
            SELECT ctid, row_number() OVER (PARTITION BY actor ORDER BY revision DESC) AS nth FROM idempotency_keys
        ) ranked
        WHERE nth > %(limit)s
    ))
"""


def forget_oldest(conn: Connection, actor: str, *, audit_seq: int, limit: int = MAX_RESULTS_PER_ACTOR) -> None:
    """Delete the oldest results of an actor if there are more than `limit`; does so for every hundredth audit entry."""
    if audit_seq % _FORGET_EVERY == 0:
        conn.execute(_FORGET_OLDEST, {"actor": actor, "limit": limit})


def forget_oldest_of_all(conn: Connection, *, limit: int = MAX_RESULTS_PER_ACTOR) -> int:
    """Delete the oldest results of each actor that has more than `limit`; return how many were deleted."""
    return conn.execute(_FORGET_OLDEST_OF_ALL, {"limit": limit}).rowcount
