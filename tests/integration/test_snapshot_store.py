"""Snapshots out of PostgreSQL: what changed since one leads to what a whole load gives, and no commit is ever lost."""

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, LiteralString

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from gatekeeper_grpc.domain.commands import FlagUpdate, TargetEdit
from gatekeeper_grpc.domain.condition import Condition, Operator, condition_document
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.flag import OFF, ON, FlagConfig, SegmentTarget
from gatekeeper_grpc.domain.mutation import Change, ChangeType, Intent, ResourceType
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.store import mutations as mutations_module
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import NOTHING, Effect, Head, MutationRunner
from gatekeeper_grpc.store.postgres.database import Connection, Database
from gatekeeper_grpc.store.snapshots import loader as snapshots_module
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from gatekeeper_grpc.store.targets import TargetStore
from tests.support import servers
from tests.support.snapshots import read, written

pytestmark = pytest.mark.promise("A5")

TIMEOUT_S = 60.0
REST_S = 0.123
INTENT = Intent(caller=None, action="Test")
USERS = ["alice", "bob", "ünï"]
KEYS = ["a", "b", "c"]


@dataclass(frozen=True)
class House:
    """The stores on one database."""

    database: Database
    ledger: MutationRunner
    flags: FlagStore
    targets: TargetStore
    snapshots: SnapshotStore

    def create(self, key: str, **config: Any) -> None:
        self.flags.create(FlagConfig(key=key, **{"enabled": True, **config}), INTENT)

    def update(self, key: str, **changes: Any) -> None:
        self.flags.update(FlagUpdate(key=key, changes=changes), INTENT)

    def delete(self, key: str) -> None:
        self.flags.delete(key, "", INTENT)

    def target(self, key: str, *user_ids: str, variant: str | None = ON) -> None:
        self.targets.edit(TargetEdit(flag_key=key, user_ids=user_ids, variant=variant), INTENT)

    def change(self, change: Change, statement: LiteralString, *parameters: object) -> None:
        """Do in SQL what no store does yet, as one mutation."""

        def act(conn: Connection, _head: Head) -> Effect[None]:
            conn.execute(statement, parameters)
            return Effect(result=None, preview=None, change=change)

        self.ledger.mutate(INTENT, act, codec=NOTHING)

    def execute(self, statement: LiteralString, *parameters: object) -> None:
        """Do something behind the ledger's back."""
        with self.database.write() as conn:
            conn.execute(statement, parameters)


@pytest.fixture
def house(database: Database) -> House:
    ledger = MutationRunner(database, servers.KEYS.data)
    return House(database, ledger, FlagStore(database, ledger), TargetStore(database, ledger), SnapshotStore(database))


def contents(snapshot: Snapshot) -> dict[str, Any]:
    """All that a snapshot says of the flags that exist."""
    ids = {flag.flag_id for flag in snapshot.flags.values()}
    return {
        "revision": snapshot.revision,
        "flags": [*snapshot.flags.items()],
        "plans": [*snapshot.plans.items()],
        "segments": [*snapshot.segments.items()],
        "targets": {user: {i: tag for i, tag in snapshot.targets.find(user).items() if i in ids} for user in USERS},
        "counts": {flag_id: snapshot.targets.count(flag_id) for flag_id in ids},
    }


def value(snapshot: Snapshot, key: str, user_id: str, **attributes: Any) -> bool:
    context = EvaluationContext(user_id=user_id, attributes=attributes)
    return snapshot.evaluate(snapshot.select([key]).plans, context)[0].value


Mutation = Callable[[House], object]
keys, variants = st.sampled_from(KEYS), st.sampled_from([OFF, ON])
changes = st.fixed_dictionaries(
    {}, optional={"enabled": st.booleans(), "default_variant": variants, "rollout_percentage": st.integers(0, 100)}
)
mutations = st.one_of(
    st.builds(lambda key, config: lambda house: house.create(key, **config), keys, changes),
    st.builds(lambda key, new: lambda house: house.update(key, **new), keys, changes),
    st.builds(lambda key: lambda house: house.delete(key), keys),
    st.builds(
        lambda key, users, variant: lambda house: house.target(key, *users, variant=variant),
        keys,
        st.lists(st.sampled_from(USERS), min_size=1, unique=True),
        st.none() | variants,
    ),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(mutations, max_size=8), min_size=1, max_size=3))
def test_loading_what_changed_leads_to_what_a_whole_load_gives(house: House, batches: list[list[Mutation]]) -> None:
    snapshot = house.snapshots.load()  # the database is as the example before left it
    for batch in batches:
        for mutate in batch:
            with suppress(GatekeeperError):  # a flag that is there already, or not
                mutate(house)
        snapshot = house.snapshots.load_since(snapshot)

        assert contents(snapshot) == contents(house.snapshots.load())
        assert contents(read(written(snapshot))) == contents(snapshot)


def test_without_a_change_the_snapshot_itself_comes_back(house: House) -> None:
    house.create("a")
    snapshot = house.snapshots.load()

    assert house.snapshots.load_since(snapshot) is snapshot


def test_another_installation_at_the_same_revision_is_loaded_whole(house: House) -> None:
    house.create("a")
    before = house.snapshots.load()
    become_another_installation(house)
    house.execute("UPDATE feature_flags SET description = 'of the other one' WHERE key = 'a'")

    loaded = house.snapshots.load_since(before)

    assert loaded.installation_id != before.installation_id
    assert loaded.flags["a"].config.description == "of the other one"


def test_a_snapshot_knows_at_which_revision_everything_was_last_loaded(house: House) -> None:
    house.create("a")
    whole = house.snapshots.load()
    house.create("b")
    led = house.snapshots.load_since(whole)

    assert [(snapshot.whole_at, snapshot.revision) for snapshot in (whole, led)] == [(1, 1), (1, 2)]


def test_targets_of_a_deleted_flag_do_not_return_with_its_key(house: House) -> None:
    house.create("a")
    house.target("a", "alice")
    before = house.snapshots.load()
    house.delete("a")
    house.create("a")

    assert [value(snapshot, "a", "alice") for snapshot in (before, house.snapshots.load_since(before))] == [True, False]


def become_another_installation(house: House) -> None:
    house.execute("UPDATE revision_head SET installation_id = gen_random_uuid()")


def set_back(house: House) -> None:
    house.execute("UPDATE revision_head SET revision = 0")


def move_on_to_the_next_epoch(house: House) -> None:
    house.execute("UPDATE revision_head SET revision = %s", REVISIONS_PER_EPOCH + 1)


def prune_some(house: House) -> None:
    house.execute("DELETE FROM change_log WHERE revision = (SELECT revision FROM revision_head) - 1")


def prune_all(house: House) -> None:
    house.execute("DELETE FROM change_log")


@pytest.mark.parametrize(
    ("meddle", "max_revisions", "whole"),
    [
        pytest.param(None, 2, False, id="the log leads there"),
        pytest.param(None, 1, True, id="the way is too long"),
        pytest.param(prune_some, 2, True, id="a change is pruned"),
        pytest.param(prune_all, 2, True, id="all changes are pruned"),
        pytest.param(move_on_to_the_next_epoch, 2, True, id="another epoch"),
        pytest.param(set_back, 2, True, id="the database lost revisions"),
        pytest.param(become_another_installation, 2, True, id="another installation"),
    ],
)
def test_everything_is_loaded_when_the_change_log_does_not_lead_there(
    meddle: Callable[[House], None] | None,
    max_revisions: int,
    whole: bool,
    house: House,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots_module, "_MAX_DELTA_REVISIONS", max_revisions)
    house.create("a")
    base = house.snapshots.load()
    house.create("b")
    house.create("c")
    # Known to the table alone: only a whole load sees it.
    house.execute("UPDATE feature_flags SET description = 'unlogged' WHERE key = 'a'")
    if meddle:
        meddle(house)

    loaded = house.snapshots.load_since(base)

    assert (loaded.flags["a"].config.description == "unlogged") is whole
    assert [*loaded.flags] == ["a", "b", "c"]


def test_a_polling_reader_among_8_writers_ends_with_what_is_stored(house: House) -> None:
    writing = threading.Barrier(9)

    def write(writer: int) -> None:
        writing.wait(TIMEOUT_S)
        for number in range(8):
            house.create(f"flag-{writer}-{number}")
            house.target(f"flag-{writer}-{number}", f"user-{writer}")
            if number % 2:
                house.delete(f"flag-{writer}-{number}")

    with ThreadPoolExecutor(8) as writers:
        done = [writers.submit(write, writer) for writer in range(8)]
        snapshot, revisions = house.snapshots.load(), [0]
        writing.wait(TIMEOUT_S)
        while not all(writer.done() for writer in done):
            snapshot = house.snapshots.load_since(snapshot)
            revisions.append(snapshot.revision)
        assert [writer.result() for writer in done] == [None] * 8

    snapshot = house.snapshots.load_since(snapshot)
    assert contents(snapshot) == contents(house.snapshots.load())
    assert (snapshot.revision, len(snapshot.flags)) == (8 * 20, 8 * 4)
    assert revisions == sorted(revisions)


_IS_WAITING = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def revisions_polled(house: House) -> list[int]:
    """What a reader that polls for "newer than what I saw" gets of two writers, the first of whom commits last."""
    first_has_its_revision, first_may_commit = threading.Event(), threading.Event()

    def write(key: str, *, pause: bool) -> None:
        def act(_conn: Connection, _head: Head) -> Effect[None]:
            if pause:
                first_has_its_revision.set()
                assert first_may_commit.wait(TIMEOUT_S)
            change = Change(resource=ResourceType.FLAG, key=key, change=ChangeType.CREATED, document={})
            return Effect(result=None, preview=None, change=change)

        house.ledger.mutate(INTENT, act, codec=NOTHING)

    def poll() -> None:
        with house.database.read() as conn:
            newest = max(seen, default=0)
            seen.extend(revision for (revision,) in conn.execute(_NEWER, {"revision": newest}))

    def is_waiting() -> bool:
        with house.database.read() as conn:
            return conn.execute(_IS_WAITING).fetchone() != (0,)

    seen: list[int] = []
    with ThreadPoolExecutor(2) as writers:
        first = writers.submit(write, "first", pause=True)
        assert first_has_its_revision.wait(TIMEOUT_S)
        second = writers.submit(write, "second", pause=False)
        while not (second.done() or is_waiting()):
            pass
        poll()
        first_may_commit.set()
        assert [writer.result(TIMEOUT_S) for writer in (first, second)] == [None, None]
    poll()
    return seen


_NEWER = "SELECT revision FROM change_log WHERE revision > %(revision)s ORDER BY revision"


def test_a_poller_sees_every_revision_if_the_first_writer_commits_last(house: House) -> None:
    assert revisions_polled(house) == [1, 2]


def test_twin_with_revisions_from_a_sequence_it_loses_a_commit_for_ever(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.execute("CREATE SEQUENCE revisions")
    house.execute("CREATE SEQUENCE entries")
    take_from_sequence = """
        SELECT installation_id, nextval('revisions') AS revision, nextval('entries') AS audit_seq,
               audit_hash AS prev_hash
        FROM revision_head
    """
    monkeypatch.setattr(mutations_module, "_LOCK_HEAD", take_from_sequence)

    assert revisions_polled(house) == [2]


_INSERT_SEGMENT = """
    INSERT INTO segments (key, match, conditions, create_time, update_time, revision)
    VALUES (%s, %s, %s, now(), now(), 1)
"""

_SET_SEGMENT_TARGETS = """
    INSERT INTO flag_segments (flag_id, position, segment_id, variant)
    SELECT flag_id, %s, segment_id, %s FROM feature_flags f, segments s WHERE f.key = %s AND s.key = %s
"""

_JOIN = """
    WITH subject AS (INSERT INTO subjects (user_id) VALUES (%s) RETURNING subject_id)
    INSERT INTO segment_members SELECT segment_id, subject_id FROM segments, subject WHERE key = %s
"""

PRO = Condition(attribute="plan", operator=Operator.IN, values=("pro", "team"))
ADULT = Condition(attribute="/age", operator=Operator.GREATER_OR_EQUAL, values=(18,))
NOT_ROBOT = Condition(attribute="robot", operator=Operator.EXISTS, negate=True)


@pytest.fixture
def segmented(house: House) -> House:
    """A flag aimed first, with off, at `banned` (its member is mallory), then at who pays and is of age."""
    house.create("a")
    for key, match, conditions in (("banned", "ANY", []), ("paying", "ALL", [PRO, ADULT, NOT_ROBOT])):
        house.execute(_INSERT_SEGMENT, key, match, Jsonb([*map(condition_document, conditions)]))
    house.execute(_SET_SEGMENT_TARGETS, 1, ON, "a", "paying")
    house.execute(_SET_SEGMENT_TARGETS, 0, OFF, "a", "banned")
    house.execute(_JOIN, "mallory", "banned")
    return house


def test_segments_are_loaded_with_their_conditions_members_and_order(segmented: House) -> None:
    snapshot = segmented.snapshots.load()

    assert snapshot.flags["a"].config.segment_targets == (
        SegmentTarget(segment_key="banned", variant=OFF),
        SegmentTarget(segment_key="paying", variant=ON),
    )
    assert {key: segment.config.conditions for key, segment in snapshot.segments.items()} == {
        "banned": (),
        "paying": (PRO, ADULT, NOT_ROBOT),
    }
    assert [
        value(snapshot, "a", "alice", plan="pro", age=18),
        value(snapshot, "a", "alice", plan="pro", age=17),
        value(snapshot, "a", "alice", plan="pro", age=18, robot=False),
        value(snapshot, "a", "mallory", plan="pro", age=18),
    ] == [True, False, False, False]


def test_a_delta_carries_segments_changed_deleted_and_joined(segmented: House) -> None:
    base = segmented.snapshots.load()
    segmented.change(
        Change(resource=ResourceType.SEGMENT, key="paying", change=ChangeType.UPDATED, document={}),
        "UPDATE segments SET conditions = '[]' WHERE key = 'paying'",
    )
    with segmented.database.read() as conn:
        subjects = tuple(subject for (subject,) in conn.execute("SELECT subject_id FROM subjects"))
    segmented.change(
        Change(resource=ResourceType.MEMBERS, key="banned", change=ChangeType.UPDATED, document={}, subjects=subjects),
        "DELETE FROM segment_members",
    )

    after = segmented.snapshots.load_since(base)

    assert contents(after) == contents(segmented.snapshots.load())
    assert (len(base.members), len(after.members)) == (1, 0)
    assert [value(snapshot, "a", "alice", plan="pro", age=18) for snapshot in (base, after)] == [True, False]


def test_users_of_any_name_are_loaded(house: House) -> None:
    names = ["tab\t", "line\n", "return\r", "back\\slash", "\\N", "\\.", " ", "🦉", "x" * 256]
    house.create("a")
    for name in names:
        house.execute(_TARGET, name, "a")

    targets = house.snapshots.load().targets

    assert (len(targets), [[*targets.find(name).values()] for name in names]) == (len(names), [[1]] * len(names))


_TARGET = """
    WITH subject AS (INSERT INTO subjects (user_id) VALUES (%s) RETURNING subject_id)
    INSERT INTO targeted_users SELECT flag_id, subject_id, 'on' FROM feature_flags, subject WHERE key = %s
"""


def test_only_what_may_delay_evaluations_rests(segmented: House, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    sleep_s = time.sleep

    def sleep(seconds: float) -> None:
        if seconds == REST_S:
            rests.append(seconds)
        else:  # Another thread's.
            sleep_s(seconds)

    monkeypatch.setattr(snapshots_module, "_SLICE_S", 0.0)
    monkeypatch.setattr(snapshots_module, "_REST_S", REST_S)
    monkeypatch.setattr(time, "sleep", sleep)
    segmented.target("a", "alice")

    def rests_of(load: Callable[[], Snapshot]) -> int:
        rests.clear()
        load()
        return len(rests)

    first = segmented.snapshots.load()

    assert rests_of(segmented.snapshots.load) == 0
    assert rests_of(lambda: segmented.snapshots.load(sharing=first, paced=False)) == 0
    # Of the flag, the target, the member and the entries of the change log.
    assert rests_of(lambda: segmented.snapshots.load(sharing=first)) == 3 + first.revision


def test_a_reload_shares_what_is_as_it_was_and_nothing_else(house: House) -> None:
    for key in ("kept", "changed", "targeted"):
        house.create(key, rollout_percentage=100)
    before = house.snapshots.load()
    house.update("changed", rollout_percentage=50)
    house.target("targeted", "alice", variant=OFF)
    after = house.snapshots.load(sharing=before)

    shared = {
        key: (after.flags[key] is before.flags[key], after.plans[key] is before.plans[key]) for key in after.flags
    }
    assert shared == {"kept": (True, True), "changed": (False, False), "targeted": (True, False)}
    assert (after.flags, after.plans) == (house.snapshots.load().flags, house.snapshots.load().plans)


def test_whole_loads_leave_nothing_for_the_garbage_collector(house: House) -> None:
    """What a server freezes before it serves is never collected: a snapshot must go when it is replaced."""
    house.create("checkout", rollout_percentage=50)
    house.target("checkout", "alice")
    gc.collect()
    gc.disable()
    try:
        kept = [house.snapshots.load() for _ in range(10)][-1]
        before = len(gc.get_objects())
        for _ in range(200):
            kept = house.snapshots.load()
            kept.decide(kept.select(()), EvaluationContext(user_id="alice"))
        after = len(gc.get_objects())
    finally:
        gc.enable()

    assert kept.flags
    assert after - before < 200, "less than one object for each load"
