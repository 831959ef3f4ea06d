"""Stored attributes in PostgreSQL: what instances hold of them after any mutations, their counts, their cap."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.commands import SegmentUpdate, UserFilter, UserUpdate
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.errors import GatekeeperError, ResourceExhausted
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.domain.segment import SegmentConfig
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user import UserProfile
from gatekeeper_grpc.domain.user_index import user_digest
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.segments import SegmentStore
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from gatekeeper_grpc.store.users import LIST_USERS, UserStore, _list_parameters
from tests.support.servers import KEYS

SYSTEM = Intent(caller=None, action="Test")
USERS = ["alice", "bob", "carol"]
NAMES = ["plan", "age", "é.b"]
SEGMENTS = ["s1", "s2"]


@pytest.fixture
def ledger(database: Database) -> MutationRunner:
    return MutationRunner(database, KEYS.data)


@pytest.fixture
def users(database: Database, ledger: MutationRunner) -> UserStore:
    return UserStore(database, ledger)


@pytest.fixture
def segments(database: Database, ledger: MutationRunner) -> SegmentStore:
    return SegmentStore(database, ledger)


@pytest.fixture
def snapshots(database: Database) -> SnapshotStore:
    return SnapshotStore(database)


def naming(key: str, *names: str) -> SegmentConfig:
    """Build a segment whose conditions look at these attributes."""
    conditions = tuple(Condition(attribute=name, operator=Operator.EXISTS) for name in names)
    return SegmentConfig(key=key, conditions=conditions)


def held(snapshot: Snapshot) -> dict[str, dict[str, JsonValue]]:
    """What a snapshot holds of the users, by attribute; the attributes that nobody has stand there too."""
    index = snapshot.attributes
    found = {name: {user: index.find(user_digest(user), name) for user in USERS} for name in index.names}
    return {name: {user: value for user, value in of.items() if value is not None} for name, of in found.items()}


def shards(snapshot: Snapshot) -> dict[str, dict[int, bytes]]:
    return {name: dict(held) for name, held in snapshot.attributes.shards.items()}


def counted(dsn: str) -> tuple[dict[str, int], dict[str, int]]:
    """The counts that are kept, and the same counted from the users."""
    recount = "SELECT name, count(*) FROM users, jsonb_object_keys(attributes) AS name GROUP BY name"
    with psycopg.connect(dsn) as conn:
        kept = conn.execute("SELECT name, users FROM user_attribute_counts").fetchall()
        return dict(kept), dict(conn.execute(recount).fetchall())


Act = Callable[[UserStore, SegmentStore], object]


def create_user(user: str, attributes: dict[str, JsonValue]) -> Act:
    return lambda users, _: users.create(UserProfile(user_id=user, attributes=attributes), SYSTEM)


def update_user(user: str, attributes: dict[str, JsonValue], names: set[str] | None) -> Act:
    wanted = UserUpdate(user_id=user, attributes=attributes, names=None if names is None else frozenset(names))
    return lambda users, _: users.update(wanted, SYSTEM)


def delete_user(user: str) -> Act:
    return lambda users, _: users.delete(user, "", SYSTEM)


def create_segment(key: str, names: set[str]) -> Act:
    return lambda _, segments: segments.create(naming(key, *names), SYSTEM)


def update_segment(key: str, names: set[str]) -> Act:
    update = SegmentUpdate(key=key, changes={"conditions": naming(key, *names).conditions})
    return lambda _, segments: segments.update(update, SYSTEM)


def delete_segment(key: str) -> Act:
    return lambda _, segments: segments.delete(key, "", SYSTEM)


some_users, some_segments = st.sampled_from(USERS), st.sampled_from(SEGMENTS)
some_names = st.sets(st.sampled_from(NAMES))
attributes = st.dictionaries(
    st.sampled_from([*NAMES, "unnamed"]), st.sampled_from([None, 1, 1e300, "gold", ["a", {"b": 0.1}]])
)
mutations = st.one_of(
    st.builds(create_user, some_users, attributes),
    st.builds(update_user, some_users, attributes, st.none() | some_names),
    st.builds(delete_user, some_users),
    st.builds(create_segment, some_segments, some_names),
    st.builds(update_segment, some_segments, some_names),
    st.builds(delete_segment, some_segments),
)


def do(acts: list[Act], users: UserStore, segments: SegmentStore) -> None:
    """Carry mutations out; those that cannot be are left out."""
    for act in acts:
        with suppress(GatekeeperError):
            act(users, segments)


# One database for all examples: each goes on from where the one before stopped.
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(mutations, max_size=6), max_size=3))
def test_refreshing_leads_to_what_loading_everything_gives(
    users: UserStore, segments: SegmentStore, snapshots: SnapshotStore, dsn: str, batches: list[list[Act]]
) -> None:
    refreshed = snapshots.load()
    for acts in batches:
        do(acts, users, segments)
        refreshed = snapshots.load_since(refreshed)

    loaded = snapshots.load()

    assert (refreshed.revision, refreshed.segments) == (loaded.revision, loaded.segments)
    assert (held(refreshed), shards(refreshed)) == (held(loaded), shards(loaded))
    kept, recounted = counted(dsn)
    assert kept == recounted


@pytest.fixture
def populated(users: UserStore, segments: SegmentStore) -> None:
    do(
        [
            create_user("alice", {"plan": "gold", "age": 30}),
            create_user("bob", {"plan": None, "age": 1e300}),
            create_user("carol", {}),
        ],
        users,
        segments,
    )


@pytest.mark.usefixtures("populated")
@pytest.mark.parametrize(
    ("acts", "expected"),
    [
        pytest.param([], {}, id="no segment names anything"),
        pytest.param([create_segment("s1", {"plan"})], {"plan": {"alice": "gold"}}, id="a segment names one"),
        pytest.param([create_segment("s1", {"other"})], {"other": {}}, id="one that nobody has"),
        pytest.param(
            [create_segment("s1", {"plan"}), update_segment("s1", {"age"})],
            {"age": {"alice": 30, "bob": 10**300}},
            id="another one instead",
        ),
        pytest.param(
            [create_segment("s1", {"plan"}), create_segment("s2", {"plan"}), delete_segment("s1")],
            {"plan": {"alice": "gold"}},
            id="still named by another segment",
        ),
        pytest.param([create_segment("s1", {"plan"}), delete_segment("s1")], {}, id="named no more"),
        pytest.param(
            [
                create_segment("s1", {"plan"}),
                delete_segment("s1"),
                update_user("alice", {}, {"plan"}),
                create_segment("s1", {"plan"}),
            ],
            {"plan": {}},
            id="named again after it was removed unseen",
        ),
        pytest.param(
            [create_segment("s1", {"plan"}), update_user("carol", {"plan": "free"}, None), delete_user("alice")],
            {"plan": {"carol": "free"}},
            id="users change",
        ),
    ],
)
def test_a_snapshot_holds_what_segments_name_of_all_users(
    users: UserStore,
    segments: SegmentStore,
    snapshots: SnapshotStore,
    acts: list[Act],
    expected: dict[str, dict[str, Any]],
) -> None:
    step_by_step, at_once = snapshots.load(), snapshots.load()
    for act in acts:
        act(users, segments)
        step_by_step = snapshots.load_since(step_by_step)

    assert held(step_by_step) == held(snapshots.load_since(at_once)) == held(snapshots.load()) == expected


def test_counts_follow_users_that_go_with_their_subject(users: UserStore, segments: SegmentStore, dsn: str) -> None:
    do([create_user(user, {"plan": 1, user: 2}) for user in USERS], users, segments)

    with psycopg.connect(dsn) as conn:
        conn.execute("DELETE FROM subjects WHERE user_id = 'alice'")

    assert counted(dsn) == ({"plan": 2, "bob": 1, "carol": 1},) * 2


def test_the_cap_is_on_values_that_segments_name(
    database: Database, ledger: MutationRunner, segments: SegmentStore, dsn: str
) -> None:
    users = UserStore(database, ledger, attribute_cap=2)
    segments.create(naming("s1", "plan"), SYSTEM)
    do([create_user("alice", {"plan": 1, "unnamed": 1}), create_user("bob", {"plan": 1})], users, segments)

    with pytest.raises(ResourceExhausted) as refusal:
        users.create(UserProfile(user_id="carol", attributes={"plan": 1}), SYSTEM)
    users.create(UserProfile(user_id="carol", attributes={"unnamed": 1}), SYSTEM)
    with pytest.raises(ResourceExhausted):
        users.update(UserUpdate(user_id="carol", attributes={"plan": 1}), SYSTEM)

    assert refusal.value.metadata == {"limit": "2", "wanted": "3"}
    assert counted(dsn)[0] == {"plan": 2, "unnamed": 2}


def test_who_adds_nothing_is_not_refused_for_what_others_added(
    database: Database, ledger: MutationRunner, users: UserStore, segments: SegmentStore
) -> None:
    do([create_segment("s1", {"plan"}), create_user("alice", {"plan": 1, "x": 1})], users, segments)
    capped = UserStore(database, ledger, attribute_cap=0)

    changed = capped.update(UserUpdate(user_id="alice", attributes={"plan": 2}), SYSTEM)

    assert changed.result.attributes == {"plan": 2}


def test_users_are_found_by_attribute_through_an_index(dsn: str) -> None:
    fill = """
        WITH people AS (INSERT INTO subjects (user_id) SELECT 'user-' || n FROM generate_series(1, 20000) n RETURNING *)
        INSERT INTO users (subject_id, attributes, create_time, update_time, revision)
        SELECT subject_id, jsonb_build_object('email', user_id), now(), now(), 1 FROM people
    """
    wanted = {**_list_parameters(UserFilter(limit=101)), "attributes": Jsonb({"email": "user-77"})}
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(fill)
        conn.execute("ANALYZE")
        plan = "\n".join(line for (line,) in conn.execute("EXPLAIN " + LIST_USERS, wanted))

    assert "users_attributes_idx" in plan
