"""Set-based queries take time in proportion to what they are given, also while the planner takes a table for empty.

A table that was empty when it was analysed counts as empty until it is analysed again, a minute or more after an
import.
"""

import json
from collections.abc import Iterator
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from gatekeeper_grpc.store import members, targets
from gatekeeper_grpc.store.snapshots import loader
from tests.support.databases import new_database

Connection = psycopg.Connection[tuple[Any, ...]]

PEOPLE = 10_000
USER_IDS = [f"user-{number}" for number in range(PEOPLE)]
# Each node of a plan may handle each row a few times. A loop over all rows for each row is thousands of times as much.
MOST_ROWS = 30 * PEOPLE
# Statistics come from the statement below alone.
_TABLES = ("feature_flags", "segments", "subjects", "targeted_users", "segment_members", "users")
_BEFORE = """
    INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage, create_time, update_time, revision)
    VALUES ('flag', true, 'off', 0, now(), now(), 1);
    INSERT INTO segments (key, match, create_time, update_time, revision)
    SELECT 'segment-' || n, 'ANY', now(), now(), 1 FROM generate_series(1, 64) n;
    INSERT INTO subjects (user_id) SELECT 'early-' || n FROM generate_series(1, 50) n;
    INSERT INTO targeted_users (flag_id, subject_id, variant) SELECT 1, subject_id, 'on' FROM subjects;
    INSERT INTO segment_members (segment_id, subject_id) SELECT 1, subject_id FROM subjects;
    INSERT INTO users (subject_id, attributes, create_time, update_time, revision)
    SELECT subject_id, '{}', now(), now(), 1 FROM subjects;
    DELETE FROM targeted_users; DELETE FROM segment_members; DELETE FROM users;
    ANALYZE targeted_users, segment_members, users;
"""
_PEOPLE = """
    INSERT INTO subjects (user_id) SELECT 'user-' || n FROM generate_series(0, 9999) n;
    INSERT INTO users (subject_id, attributes, create_time, update_time, revision)
    SELECT subject_id, '{"plan": "pro"}', now(), now(), 1 FROM subjects WHERE user_id LIKE 'user-%';
"""
_EDITS = """
    INSERT INTO targeted_users (flag_id, subject_id, variant) SELECT 1, subject_id, 'on' FROM subjects;
    INSERT INTO segment_members (segment_id, subject_id) SELECT 1, subject_id FROM subjects;
"""


@pytest.fixture(scope="module")
def database(postgres: str) -> Iterator[Connection]:
    """A database with people, targets and members, whose planner knows of none."""
    with new_database(postgres) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        for table in _TABLES:
            conn.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(sql.Identifier(table)))
        conn.execute(_BEFORE)
        conn.execute(_PEOPLE)
        conn.execute(_EDITS)
        yield conn


def most_rows(conn: Connection, query: LiteralString, parameters: dict[str, Any]) -> int:
    """Run a query without keeping what it does; return how many rows the busiest node of its plan read."""
    with conn.transaction(force_rollback=True):
        row = conn.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + query, parameters).fetchone()
    assert row is not None
    (plan,) = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return max(map(rows_of, nodes_of(plan["Plan"])))


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


def rows_of(node: dict[str, Any]) -> int:
    names = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter")
    return int(sum(node.get(name, 0) for name in names) * node["Actual Loops"])


def known(conn: Connection) -> dict[str, Any]:
    """What queries are given: all people, the flag, the segment."""
    subjects: list[UUID] = [
        subject for (subject,) in conn.execute("SELECT subject_id FROM subjects WHERE user_id LIKE 'user-%'")
    ]
    return {
        "user_ids": USER_IDS,
        "subjects": subjects,
        "flag_id": 1,
        "segment_id": 1,
        "variant": "off",
        "names": ["plan"],
    }


@pytest.mark.parametrize(
    ("query", "key"),
    [
        pytest.param(loader.TARGETS_OF_PAIRS, "flag", id="targets that changed"),
        pytest.param(loader.MEMBERS_OF_PAIRS, "segment-1", id="members that changed"),
        pytest.param(loader.ATTRIBUTES_OF_SUBJECTS, "", id="attributes that changed"),
        pytest.param(targets._FIND, "", id="find targets"),
        pytest.param(targets._SET, "", id="set targets"),
        pytest.param(targets._REMOVE, "", id="remove targets"),
        pytest.param(members._ADD, "", id="add members"),
        pytest.param(members._REMOVE, "", id="remove members"),
    ],
)
def test_a_query_reads_each_row_once(query: LiteralString, key: str, database: Connection) -> None:
    parameters = known(database)

    assert most_rows(database, query, {**parameters, "keys": [key] * len(parameters["subjects"])}) < MOST_ROWS


_JOINED = """
    SELECT s.user_id, g.segment_id, m.subject_id
    FROM unnest(%(keys)s::text[], %(subjects)s::uuid[]) AS pair (key, subject_id)
    JOIN segments g ON g.environment = '' AND g.key = pair.key
    JOIN subjects s ON s.subject_id = pair.subject_id
    LEFT JOIN segment_members m ON m.segment_id = g.segment_id AND m.subject_id = pair.subject_id
"""


def test_twin_a_plain_join_loops_over_all_rows_for_each(database: Connection) -> None:
    parameters = known(database)

    assert (
        most_rows(database, _JOINED, {**parameters, "keys": ["segment-1"] * len(parameters["subjects"])})
        > PEOPLE**2 // 2
    )
