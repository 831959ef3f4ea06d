"""Re-wrapping: everything sealed that the database keeps, sealed anew under the newest data key.

Not a mutation: what was sealed stays the same. Any number of re-wrappers, and servers, may work at the same time; a
row that somebody else changed meanwhile is left as they wrote it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, LiteralString

from gatekeeper_grpc.store.postgres.database import Connection, Database, one
from gatekeeper_grpc.store.postgres.retries import retry_lost_read

_BATCH_ROWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedColumn:
    """A column of sealed bytes: what its table is called for people, and the statements that re-wrap it."""

    name: str
    count: LiteralString
    batch: LiteralString
    replace: LiteralString


# Sealed bytes begin with the name of their key: what begins otherwise than the newest key's needs an older one. `place`
# names a row, and is where the next batch goes on.
_CLIENT_SECRETS = SealedColumn(
    name="client secrets",
    count="""
        SELECT count(*) FROM client_keys WHERE substr(secret, 1, octet_length(%(newest)s)) <> %(newest)s
    """,
    batch="""
        SELECT ARRAY[key_id], secret FROM client_keys
        WHERE substr(secret, 1, octet_length(%(newest)s)) <> %(newest)s
          AND (%(place)s::text[] IS NULL OR key_id > (%(place)s::text[])[1])
        ORDER BY key_id LIMIT %(limit)s
    """,
    replace="""
        UPDATE client_keys SET secret = %(after)s WHERE key_id = (%(place)s::text[])[1] AND secret = %(before)s
    """,
)

_STORED_ANSWERS = SealedColumn(
    name="stored responses",
    count="""
        SELECT count(*) FROM idempotency_keys WHERE substr(result, 1, octet_length(%(newest)s)) <> %(newest)s
    """,
    batch="""
        SELECT ARRAY[actor, action, request_id::text], result FROM idempotency_keys
        WHERE substr(result, 1, octet_length(%(newest)s)) <> %(newest)s
          AND (%(place)s::text[] IS NULL OR (actor, action, request_id)
               > ((%(place)s::text[])[1], (%(place)s::text[])[2], (%(place)s::text[])[3]::uuid))
        ORDER BY actor, action, request_id LIMIT %(limit)s
    """,
    replace="""
        UPDATE idempotency_keys SET result = %(after)s
        WHERE actor = (%(place)s::text[])[1] AND action = (%(place)s::text[])[2]
          AND request_id = (%(place)s::text[])[3]::uuid AND result = %(before)s
    """,
)

SEALED_COLUMNS = (_CLIENT_SECRETS, _STORED_ANSWERS)


class SealedStore:
    """What the database keeps sealed, without opening it.

    Args:
        database: Where it is kept.
        newest: What everything sealed under the newest key begins with.
    """

    def __init__(self, database: Database, *, newest: bytes) -> None:
        self._database = database
        self._newest = newest

    @retry_lost_read
    def count_older(self, column: SealedColumn) -> int:
        """Count what still needs an older key."""
        with self._database.read() as conn:
            (count,) = one(conn.execute(column.count, {"newest": self._newest}))
        return int(count)

    def rewrap(
        self, column: SealedColumn, wrap: Callable[[bytes], bytes], *, batch: int = _BATCH_ROWS
    ) -> Iterator[int]:
        """Re-wrap a column, a batch in a transaction; yield how many rows each changed.

        To be interrupted at any time and begun again: what is done stays done. `wrap` turns sealed bytes into the same
        under the newest key; what it raises ends the work, its batch undone.
        """
        place: list[Any] | None = None
        while True:
            with self._database.write() as conn:
                rows = conn.execute(column.batch, {"newest": self._newest, "place": place, "limit": batch}).fetchall()
                changed = _replace_all(conn, column, rows, wrap)
            if not rows:
                return
            place = rows[-1][0]
            yield changed


def _replace_all(
    conn: Connection, column: SealedColumn, rows: list[tuple[Any, ...]], wrap: Callable[[bytes], bytes]
) -> int:
    changes = [{"place": place, "before": before, "after": wrap(before)} for place, before in rows]
    return sum(conn.execute(column.replace, change).rowcount for change in changes)
