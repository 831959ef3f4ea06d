"""People: the one table that maps user ids to the random ids by which everything else knows them."""

from collections.abc import Iterable

from gatekeeper_grpc.store.postgres.database import Connection

_MEET = """
    INSERT INTO subjects (user_id) SELECT unnest(%(user_ids)s::text[])
    ON CONFLICT ON CONSTRAINT subjects_user_id_key DO NOTHING
"""


def meet(conn: Connection, user_ids: Iterable[str]) -> None:
    """Give each user who has no subject id one."""
    conn.execute(_MEET, {"user_ids": list(user_ids)})
