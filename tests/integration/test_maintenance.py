"""Maintenance: partitions of the audit log ahead of need, and old rows gone; any instance, at any time."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import LiteralString

import pytest

from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.maintenance import Maintained, Maintenance
from gatekeeper_grpc.store.postgres.database import Database, one
from gatekeeper_grpc.store.usage import UsageStore

NOTHING = Maintained(audit_partitions=0, changes=0, answers=0, auth_events=0, refresh_tokens=0, usage=0)


@pytest.fixture
def maintenance(database: Database) -> Maintenance:
    return Maintenance(database, LoginStore(database), UsageStore(database))


def execute(database: Database, *statements: LiteralString) -> None:
    with database.write() as conn:
        for statement in statements:
            conn.execute(statement)


def count(database: Database, table: LiteralString) -> int:
    with database.read() as conn:
        (rows,) = one(conn.execute("SELECT count(*) FROM " + table))
    return int(rows)


def test_an_orderly_database_needs_nothing(maintenance: Maintenance) -> None:
    assert maintenance.run() == NOTHING


# Each table with two rows past their time and one within it.
_CHANGES = """
    INSERT INTO change_log (revision, create_time, resource_type, change_type, key)
    SELECT n, clock_timestamp() - n * interval '25 minutes', 'flag', 'created', 'f' FROM generate_series(2, 4) n
"""
_ANSWERS = """
    INSERT INTO idempotency_keys (actor, action, request_id, revision, audit_seq, audit_hash, subjects, result,
                                  create_time)
    SELECT 'a', 'A', gen_random_uuid(), 1, 1, sha256(''), '{}', '', clock_timestamp() - n * interval '10 hours'
    FROM generate_series(2, 4) n
"""
_EVENTS = """
    INSERT INTO auth_events (create_time, event, username)
    SELECT clock_timestamp() - n * interval '36 days', 'login_failed', 'anna' FROM generate_series(2, 4) n
"""
_TOKENS = """
    WITH owner AS (
        INSERT INTO admin_user (username, password_hash, role, create_time, update_time)
        VALUES ('anna', '', 'viewer', now(), now()) RETURNING admin_id
    )
    INSERT INTO refresh_tokens (token_hash, family_id, admin_id, create_time, expire_time)
    SELECT sha256(n::text::bytea), gen_random_uuid(), admin_id, now(), now() + (n - 3.5) * interval '1 minute'
    FROM owner, generate_series(2, 4) n
"""


@pytest.mark.parametrize(
    ("table", "statement", "done"),
    [
        ("change_log", _CHANGES, {"changes": 2}),
        ("idempotency_keys", _ANSWERS, {"answers": 2}),
        ("auth_events", _EVENTS, {"auth_events": 2}),
        ("refresh_tokens", _TOKENS, {"refresh_tokens": 2}),
    ],
    ids=["changes of over an hour ago", "answers of over a day ago", "events of over 90 days ago", "expired tokens"],
)
def test_rows_past_their_time_are_deleted_and_the_others_kept(
    table: LiteralString, statement: LiteralString, done: dict[str, int], database: Database, maintenance: Maintenance
) -> None:
    execute(database, statement)

    rounds = [maintenance.run(), maintenance.run()]

    assert rounds == [Maintained(**{**_fields(NOTHING), **done}), NOTHING]
    assert count(database, table) == 1


def _fields(maintained: Maintained) -> dict[str, int]:
    return {name: getattr(maintained, name) for name in Maintained.__dataclass_fields__}


def test_partitions_are_made_before_the_audit_log_reaches_them(database: Database, maintenance: Maintenance) -> None:
    execute(database, "UPDATE revision_head SET audit_seq = 1999999")

    assert maintenance.run().audit_partitions == 1

    execute(
        database,
        """
        INSERT INTO audit_log (seq, format, revision, create_time, actor, action, environment, resource_type,
                               resource_key, document_hash, prev_hash, hash)
        SELECT seq, 1, 1, now(), '', '', '', '', '', sha256(''), sha256(''), sha256('')
        FROM unnest(ARRAY[1, 1999999, 2000000, 3999999]) seq
        """,
    )
    assert count(database, "audit_log") == 4


def test_two_instances_may_do_it_at_the_same_time(database: Database, maintenance: Maintenance) -> None:
    execute(database, "UPDATE revision_head SET audit_seq = 5000000", _CHANGES)
    start = Barrier(2)

    def run() -> Maintained:
        start.wait(10)
        return maintenance.run()

    with ThreadPoolExecutor(2) as instances:
        rounds = [instance.result() for instance in [instances.submit(run) for _ in range(2)]]

    assert sorted(done.audit_partitions for done in rounds) == [0, 3]
    assert sum(done.changes for done in rounds) == 2
