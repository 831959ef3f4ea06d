"""People: the one table that maps user ids to random subject ids, by which all other tables name them."""

from collections.abc import Iterable

from gatekeeper_grpc.store.postgres.database import Connection

_ENSURE = """
    INSERT INTO subjects (user_id) SELECT unnest(%(user_ids)s::text[])
    ON CONFLICT ON CONSTRAINT subjects_user_id_key DO NOTHING
"""


def ensure_subjects(conn: Connection, user_ids: Iterable[str]) -> None:
    """Give each user without a subject id one."""
    conn.execute(_ENSURE, {"user_ids": list(user_ids)})
