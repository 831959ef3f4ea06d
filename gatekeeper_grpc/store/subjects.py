"""People: the one table that maps user ids to random subject ids, by which all other tables name them."""

from collections.abc import Callable, Iterable

from gatekeeper_grpc.store.mutations import Head
from gatekeeper_grpc.store.postgres.database import Connection, one

# A UUID has 122 random bits. The lines are those of `domain.audit.subject_line`.
_ENSURE = """
    WITH met AS (
        INSERT INTO subjects (user_id, salt)
        SELECT user_id, uuid_send(gen_random_uuid()) FROM unnest(%(user_ids)s::text[]) AS user_id
        ON CONFLICT ON CONSTRAINT subjects_user_id_key DO NOTHING
        RETURNING subject_id, sha256(salt || convert_to(user_id, 'UTF8')) AS commitment
    ), committed AS (
        INSERT INTO subject_commitments (seq, subject_id, commitment)
        SELECT %(seq)s, subject_id, commitment FROM met
    )
    SELECT sha256(convert_to(string_agg(
        'subject ' || subject_id || ' ' || encode(commitment, 'hex') || E'\\n', '' ORDER BY subject_id), 'UTF8'))
    FROM met
"""


def ensure_subjects(conn: Connection, head: Head, user_ids: Iterable[str]) -> Callable[[], bytes | None]:
    """Give each user without a subject id one, and commit to who they are; once in a mutation.

    Returns:
        A function that waits for the hash of the commitments, for the entry of the mutation; None if nobody is new.
    """
    ensuring = conn.execute(_ENSURE, {"user_ids": list(user_ids), "seq": head.audit_seq})
    return lambda: one(ensuring)[0]


def no_evidence() -> None:
    """Stand for `ensure_subjects` in a mutation that meets nobody."""
