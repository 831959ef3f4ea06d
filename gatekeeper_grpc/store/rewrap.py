"""Re-wrapping: seals all sealed columns of the database again, under the newest data key.

Not a mutation: the plain contents stay the same. Several re-wrapping processes may run at the same time as servers; a
row that another transaction changed in between is left as it is.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

from gatekeeper_grpc.store.postgres.database import Connection, Database
from gatekeeper_grpc.store.postgres.retries import retry_lost_read

_BATCH_ROWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedColumn:
    """A column of sealed bytes: its name in the output, and the statements that re-wrap it."""

    name: str
    count: LiteralString
    batch: LiteralString
    replace: LiteralString


# Sealed bytes are a version, the length of the name of their key, its name, and what only the key can read. `row` is
# the primary key of a row; the query of the next batch continues after it.
_CLIENT_SECRETS = SealedColumn(
    name="client secrets",
    count="""
        SELECT encode(substr(secret, 3, get_byte(secret, 1)), 'escape'), count(*) FROM client_keys GROUP BY 1
    """,
    batch="""
        SELECT ARRAY[key_id], secret FROM client_keys
        WHERE substr(secret, 1, octet_length(%(newest)s)) <> %(newest)s
          AND (%(row)s::text[] IS NULL OR key_id > (%(row)s::text[])[1])
        ORDER BY key_id LIMIT %(limit)s
    """,
    replace="""
        UPDATE client_keys SET secret = %(after)s WHERE key_id = (%(row)s::text[])[1] AND secret = %(before)s
    """,
)

_STORED_ANSWERS = SealedColumn(
    name="stored responses",
    count="""
        SELECT encode(substr(result, 3, get_byte(result, 1)), 'escape'), count(*) FROM idempotency_keys GROUP BY 1
    """,
    batch="""
        SELECT ARRAY[actor, action, request_id::text], result FROM idempotency_keys
        WHERE substr(result, 1, octet_length(%(newest)s)) <> %(newest)s
          AND (%(row)s::text[] IS NULL OR (actor, action, request_id)
               > ((%(row)s::text[])[1], (%(row)s::text[])[2], (%(row)s::text[])[3]::uuid))
        ORDER BY actor, action, request_id LIMIT %(limit)s
    """,
    replace="""
        UPDATE idempotency_keys SET result = %(after)s
        WHERE actor = (%(row)s::text[])[1] AND action = (%(row)s::text[])[2]
          AND request_id = (%(row)s::text[])[3]::uuid AND result = %(before)s
    """,
)

SEALED_COLUMNS = (_CLIENT_SECRETS, _STORED_ANSWERS)


class SealedStore:
    """The sealed columns of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @retry_lost_read
    def needed_keys(self) -> Mapping[str, Counter[str]]:
        """Count by the name of a key what is sealed with it: of each column, how many rows.

        Raises:
            Unavailable: The database cannot be reached.
        """
        needed: dict[str, Counter[str]] = {}
        with self._database.read() as conn:
            for column in SEALED_COLUMNS:
                for kid, count in conn.execute(column.count):
                    needed.setdefault(kid, Counter())[column.name] = count
        return needed

    def rewrap(
        self, column: SealedColumn, wrap: Callable[[bytes], bytes], *, newest: bytes, batch: int = _BATCH_ROWS
    ) -> Iterator[int]:
        """Re-wrap a column in batches, each in a transaction; yield how many rows each batch changed.

        May be interrupted at any time and started again.

        Args:
            column: The column.
            wrap: Seals sealed bytes again under the newest key, or returns them as they are; an error rolls its batch
                back.
            newest: The prefix of everything sealed under the newest key.
            batch: The number of rows in a transaction.

        Raises:
            Unavailable: The database cannot be reached.
        """
        last_row: list[Any] | None = None
        while True:
            with self._database.write() as conn:
                rows = conn.execute(column.batch, {"newest": newest, "row": last_row, "limit": batch}).fetchall()
                changed = _replace_all(conn, column, rows, wrap)
            if not rows:
                return
            last_row = rows[-1][0]
            yield changed


def _replace_all(
    conn: Connection, column: SealedColumn, rows: list[tuple[Any, ...]], wrap: Callable[[bytes], bytes]
) -> int:
    changes = [{"row": row, "before": before, "after": wrap(before)} for row, before in rows]
    return sum(
        conn.execute(column.replace, change).rowcount for change in changes if change["after"] != change["before"]
    )
