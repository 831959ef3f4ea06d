"""Hot queries on large tables: PostgreSQL's planner uses indexes for each."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest

from gatekeeper_grpc.domain.commands import AuditFilter
from gatekeeper_grpc.store import exports, logins, maintenance, mutations, stored_results
from gatekeeper_grpc.store.api_tokens import FIND_API_TOKEN, LIST_API_TOKENS
from gatekeeper_grpc.store.audit.log import list_query
from gatekeeper_grpc.store.client_keys import FIND_CLIENT_KEY, LIST_CLIENT_KEYS
from gatekeeper_grpc.store.credential_changes import CREDENTIALS_CHANGED
from gatekeeper_grpc.store.flags import FIND_FLAG, LIST_FLAGS
from gatekeeper_grpc.store.members import LIST_MEMBERS
from gatekeeper_grpc.store.postgres.caller_check import NO_CLAIMS
from gatekeeper_grpc.store.segments import FIND_SEGMENT, LIST_SEGMENTS, USED_BY
from gatekeeper_grpc.store.snapshots.loader import (
    LATEST_LOGGED,
    LOGGED_SINCE,
    MEMBERS_OF_PAIRS,
    NEWEST_OF_EPOCH,
    TARGETS_OF_PAIRS,
)
from gatekeeper_grpc.store.targets import LIST_TARGETS
from gatekeeper_grpc.store.usage import DUE_HOURS, READ_LAST, READ_SERIES
from gatekeeper_grpc.store.users import FIND_USER, LIST_USERS
from tests.support.databases import new_database

Connection = psycopg.Connection[tuple[Any, ...]]

# A tenth of the promised sizes of 100,000 flags, 1,000,000 targets (half of them on one flag), 1,000,000 audit entries.
# An index that the planner prefers on a small table it prefers on a large one, which would take minutes to fill.
_FILL = """
    SET session_replication_role = replica;  -- no foreign keys to check: half the time

    INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage, tags,
                               create_time, update_time, revision)
    SELECT 'team-' || n % 100 || '.flag-' || n, true, 'off', 0, ARRAY['tag-' || n % 1000], now(), now(), n
    FROM generate_series(1, 10000) n;

    INSERT INTO subjects (user_id) SELECT 'user-' || n FROM generate_series(1, 50000) n;

    INSERT INTO targeted_users (flag_id, subject_id, variant)
    SELECT 1, subject_id, 'on' FROM subjects
    UNION ALL
    SELECT 2 + row_number() OVER () % 9999, subject_id, 'on' FROM subjects;

    INSERT INTO segments (key, match, create_time, update_time, revision)
    SELECT 'segment-' || n, 'ANY', now(), now(), n FROM generate_series(1, 10000) n;

    INSERT INTO segment_members (segment_id, subject_id)
    SELECT 1 + row_number() OVER () % 10000, subject_id FROM subjects;

    INSERT INTO flag_segments (flag_id, position, segment_id, variant)
    SELECT n, 0, n, 'on' FROM generate_series(1, 10000) n;

    INSERT INTO change_log (revision, create_time, resource_type, change_type, key)
    SELECT n, now(), 'flag', 'updated', 'flag-' || n FROM generate_series(1, 10000) n;

    INSERT INTO audit_log (seq, format, revision, create_time, actor, action, environment, resource_type, resource_key,
                           document_hash, prev_hash, hash)
    SELECT n, 1, n, now() - n * interval '1 second', 'admin:' || n % 100, 'Action' || n % 100, '',
           'flag', 'f-' || n % 100, sha256(''), sha256(''), sha256('')
    FROM generate_series(1, 100000) n;

    INSERT INTO idempotency_keys (actor, action, request_id, revision, audit_seq, audit_hash, subjects, result,
                                  create_time)
    SELECT 'admin:' || n % 10, 'UpdateFlag', gen_random_uuid(), n, n, sha256(''), '{}', '', now()
    FROM generate_series(1, 10000) n;

    INSERT INTO admin_user (username, password_hash, role, create_time, update_time)
    SELECT 'admin-' || n, 'hash', 'viewer', now(), now() FROM generate_series(1, 5000) n;

    INSERT INTO users (subject_id, attributes, create_time, update_time, revision)
    SELECT subject_id, jsonb_build_object('plan', 'plan-' || row_number() OVER () % 10000), now(), now(), 1
    FROM subjects;

    INSERT INTO api_tokens (token_id, secret_hash, name, role, admin_id, username, create_time, expire_time, revision)
    SELECT 'token-' || n, sha256(''), 'ci', 'editor', 1 + n % 5000, 'admin-' || 1 + n % 5000, now(), now(), n
    FROM generate_series(1, 10000) n;

    INSERT INTO client_keys (key_id, name, secret, tier, create_time, revision)
    SELECT 'key-' || n, 'shop', '', 'standard', now(), n FROM generate_series(1, 10000) n;

    INSERT INTO refresh_tokens (token_hash, family_id, admin_id, create_time, expire_time)
    SELECT sha256(n::text::bytea), gen_random_uuid(), 1 + n % 5000, now(), now() + n * interval '1 minute'
    FROM generate_series(1, 10000) n;

    INSERT INTO auth_events (event, username, create_time)
    SELECT 'login_failed', 'admin-' || n, now() - n * interval '1 second' FROM generate_series(1, 10000) n;

    INSERT INTO flag_last_named (flag_id, named_time) SELECT n, now() FROM generate_series(1, 10000) n;

    INSERT INTO flag_usage (flag_id, start_time, hours, named, variant, reason, decisions, estimated_decisions)
    SELECT flag_id, date_trunc('hour', now()) - n * interval '1 hour', 1, true, 'on', 1, 1, 0
    FROM generate_series(1, 1000) flag_id, generate_series(0, 99) n;

    ANALYZE;
"""


@pytest.fixture(scope="module")
def crowded(postgres: str) -> Iterator[Connection]:
    """A connection to a database with many rows in every table."""
    with new_database(postgres) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(_FILL)
        yield conn


_LARGE = "SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples >= 5000"


def scanned_tables(conn: Connection, query: LiteralString, parameters: dict[str, Any]) -> set[str]:
    """The large tables that the planner would scan sequentially."""
    large = {name for (name,) in conn.execute(_LARGE)}
    (([explained],),) = conn.execute("EXPLAIN (FORMAT JSON) " + query, parameters)
    scanned = {node["Relation Name"] for node in _nodes(explained["Plan"]) if node["Node Type"] == "Seq Scan"}
    return scanned & large


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)


def listing(**filters: object) -> dict[str, object]:
    nothing = {"after": "", "key_prefix": None, "tags": None, "owner": None, "enabled": None, "stale_for": None}
    return {**nothing, "limit": 101, **filters}


def series(*, by_day: bool) -> dict[str, object]:
    start = datetime.now(UTC) - timedelta(days=2)
    return {"flag_id": 7, "step": "day" if by_day else "hour", "hours": 24, "start": start, "end": None}


def users(**filters: object) -> dict[str, object]:
    return {"after": "", "prefix": None, "attributes": None, "limit": 101, **filters}


def api_tokens(**filters: object) -> dict[str, object]:
    return {"after": "", "admin_id": None, "username": None, "limit": 101, **filters}


def events(**filters: object) -> dict[str, object]:
    nothing = {"before": None, "username": None, "event": None, "user_id": None, "subjects": 50, "limit": 101}
    return {**nothing, **filters}


PAIRS: dict[str, Any] = {
    "keys": [f"team-{n}.flag-{n}" for n in range(20)],
    "subjects": [UUID(int=number) for number in range(20)],
}
TOKEN = {"token_hash": bytes(32)}


def audit(**filters: Any) -> tuple[LiteralString, dict[str, object]]:
    return list_query(AuditFilter(limit=100, **filters))


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        pytest.param(FIND_FLAG, {"key": "team-7.flag-7"}, id="find a flag"),
        pytest.param(LIST_FLAGS, listing(), id="list flags"),
        pytest.param(LIST_FLAGS, listing(after="team-50.flag-50"), id="list flags, next page"),
        pytest.param(LIST_FLAGS, listing(key_prefix="team-42."), id="list flags by prefix"),
        pytest.param(LIST_FLAGS, listing(tags=["tag-7"]), id="list flags by tag"),
        pytest.param(LIST_FLAGS, listing(stale_for=timedelta(days=7)), id="list flags that nobody names"),
        pytest.param(READ_SERIES, series(by_day=False), id="usage by hour"),
        pytest.param(READ_SERIES, series(by_day=True), id="usage by day"),
        pytest.param(READ_LAST, {"flag_id": 7}, id="when a flag was last named"),
        pytest.param(DUE_HOURS, {"limit": 20_000}, id="usage of over 7 days ago"),
        pytest.param(FIND_SEGMENT, {"key": "segment-7"}, id="find a segment"),
        pytest.param(LIST_SEGMENTS, {"after": "", "key_prefix": None, "limit": 101}, id="list segments"),
        pytest.param(USED_BY, {"segment_id": 7, "limit": 10}, id="flags that use a segment"),
        pytest.param(LIST_MEMBERS, {"segment_id": 7, "after": "", "limit": 101}, id="list members"),
        pytest.param(FIND_USER, {"user_id": "user-7"}, id="find a user"),
        pytest.param(LIST_USERS, users(), id="list users"),
        pytest.param(LIST_USERS, users(prefix="user-42"), id="list users by prefix"),
        pytest.param(LIST_USERS, users(attributes='{"plan": "plan-7"}'), id="list users by attribute"),
        pytest.param(exports._TARGETS, {"subject_id": uuid4()}, id="the targets of a user"),
        pytest.param(exports._MEMBERSHIPS, {"subject_id": uuid4()}, id="the segments of a user"),
        pytest.param(FIND_API_TOKEN, {"token_id": "token-7", "admin_id": None}, id="find an API token"),
        pytest.param(LIST_API_TOKENS, api_tokens(), id="list API tokens"),
        pytest.param(LIST_API_TOKENS, api_tokens(admin_id=7), id="list API tokens of an admin user"),
        pytest.param(FIND_CLIENT_KEY, {"key_id": "key-7"}, id="find a client key"),
        pytest.param(LIST_CLIENT_KEYS, {"after": "", "limit": 101}, id="list client keys"),
        pytest.param(maintenance._PRUNE_CHANGE_LOG, {}, id="old rows of the change log"),
        pytest.param(maintenance._PRUNE_RESULTS, {}, id="old answers"),
        pytest.param(stored_results._FORGET_OLDEST, {"actor": "admin:7", "limit": 10_000}, id="surplus answers"),
        pytest.param(logins.LIST_EVENTS, events(), id="logins"),
        pytest.param(logins.LIST_EVENTS, events(username="admin-7"), id="logins of an admin user"),
        pytest.param(logins._REVOKE_SESSION, {"session_id": uuid4()}, id="end a session"),
        pytest.param(LIST_TARGETS, {"flag_id": 7, "after": "", "limit": 101}, id="list few targets"),
        pytest.param(LIST_TARGETS, {"flag_id": 1, "after": "user-5", "limit": 101}, id="list many targets"),
        pytest.param(TARGETS_OF_PAIRS, PAIRS, id="targets that changed"),
        pytest.param(MEMBERS_OF_PAIRS, PAIRS, id="members that changed"),
        pytest.param(LOGGED_SINCE, {"revision": 9_990, "limit": 10_000}, id="changes since"),
        pytest.param(CREDENTIALS_CHANGED, {"since": 9_990, "types": ["client_key"]}, id="whether credentials changed"),
        pytest.param(mutations.HASH_OF_REVISION, {"revision": 9_990}, id="the audit entry of a revision"),
        pytest.param(NEWEST_OF_EPOCH, {"first": 0, "end": 1_000_000_000}, id="the newest revision of an epoch"),
        pytest.param(LATEST_LOGGED, {"limit": 1_000}, id="the latest changes"),
        pytest.param(
            mutations._FIND_RESULT,
            {"actor": "admin#7", "action": "UpdateFlag", "request_id": uuid4()},
            id="the answer to an earlier request",
        ),
        pytest.param(
            mutations._READ_CLOCK_AND_CALLER,
            {**NO_CLAIMS, "admin_id": 7, "role": "viewer", "token_epoch": 1, "session_id": uuid4(), "after": "1000"},
            id="whether a token is current",
        ),
        pytest.param(logins._FIND_CREDENTIALS, {"username": "admin-7"}, id="a password"),
        pytest.param(logins._OWNER_OF_FAMILY, TOKEN, id="the owner of a refresh token"),
        pytest.param(logins._REVOKE, TOKEN, id="the family of a refresh token"),
        pytest.param(logins._REVOKE_ALL, {"admin_id": 7}, id="all refresh tokens of a user"),
        pytest.param(*audit(), id="audit, newest first"),
        pytest.param(*audit(before=50_000), id="audit, next page"),
        pytest.param(*audit(actor="admin:7"), id="audit by the name of an actor"),
        pytest.param(*audit(actor="admin:ann#7"), id="audit by actor"),
        pytest.param(*audit(action="Action7"), id="audit by action"),
        pytest.param(*audit(resource_type="flag", resource_key="f-7"), id="audit by resource"),
        pytest.param(*audit(start_revision=100, end_revision=110), id="audit by revision"),
        pytest.param(*audit(start_time=datetime.now(UTC) - timedelta(minutes=1)), id="audit by time"),
    ],
)
def test_a_hot_query_scans_no_large_table(
    query: LiteralString, parameters: dict[str, Any], crowded: Connection
) -> None:
    assert scanned_tables(crowded, query, parameters) == set()


def test_twin_a_filter_without_an_index_scans(crowded: Connection) -> None:
    by_description = "SELECT * FROM feature_flags WHERE description = %(text)s"

    assert scanned_tables(crowded, by_description, {"text": "x"}) == {"feature_flags"}
