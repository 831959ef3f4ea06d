"""Segments in a real PostgreSQL: catching up by the change log ends where loading everything does."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from gatekeeper_grpc.domain.commands import FlagUpdate, MemberEdit, SegmentUpdate
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.errors import AlreadyExists, FailedPrecondition, NotFound
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.flag import OFF, ON, FlagConfig, SegmentTarget
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.domain.segment import Match, SegmentConfig
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.members import LIST_MEMBERS, MemberStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Connection, Database
from gatekeeper_grpc.store.segments import COUNT_MEMBERS, FIND_SEGMENT, LIST_SEGMENTS, USED_BY, SegmentStore
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from tests.support.servers import KEYS

SEGMENTS = ["s1", "s2", "s3"]
FLAGS = ["f1", "f2"]
USERS = [f"user-{number}" for number in range(12)]
ATTRIBUTES: list[dict[str, Any]] = [{}, {"plan": "pro"}, {"plan": "free", "age": 40}, {"age": 17}]
CONDITIONS = (
    (),
    (Condition(attribute="plan", operator=Operator.EQUALS, values=("pro",)),),
    (Condition(attribute="age", operator=Operator.GREATER_THAN, values=(18,), negate=True),),
    (
        Condition(attribute="plan", operator=Operator.STARTS_WITH, values=("p", "f")),
        Condition(attribute="age", operator=Operator.EXISTS),
    ),
)


class Editor:
    """Makes random changes of segments, their members, and the flags that aim at them; some are refused."""

    def __init__(self, database: Database, random: Random) -> None:
        ledger = MutationRunner(database, KEYS.data)
        self._flags = FlagStore(database, ledger)
        self._segments = SegmentStore(database, ledger)
        self._members = MemberStore(database, ledger)
        self._random = random

    def edit(self) -> None:
        """Make one change."""
        acts = (
            self._create,
            self._update,
            self._delete,
            self._add,
            self._add,
            self._remove,
            self._set_segment_targets,
            self._unflag,
        )
        with suppress(NotFound, AlreadyExists, FailedPrecondition):
            self._random.choice(acts)()

    def _create(self) -> None:
        self._segments.create(SegmentConfig(key=self._segment(), **self._config()), _intent())

    def _update(self) -> None:
        self._segments.update(SegmentUpdate(key=self._segment(), changes=self._config()), _intent())

    def _delete(self) -> None:
        self._segments.delete(self._segment(), "", _intent())

    def _add(self) -> None:
        self._members.add(MemberEdit(segment_key=self._segment(), user_ids=self._users()), _intent())

    def _remove(self) -> None:
        self._members.remove(MemberEdit(segment_key=self._segment(), user_ids=self._users()), _intent())

    def _set_segment_targets(self) -> None:
        key = self._random.choice(FLAGS)
        keys = self._random.sample(SEGMENTS, self._random.randint(0, 2))
        targets = tuple(SegmentTarget(segment_key=key, variant=self._random.choice((ON, OFF))) for key in keys)
        try:
            self._flags.update(FlagUpdate(key=key, changes={"segment_targets": targets}), _intent())
        except NotFound:
            self._flags.create(FlagConfig(key=key, enabled=True, rollout_percentage=50), _intent())

    def _unflag(self) -> None:
        self._flags.delete(self._random.choice(FLAGS), "", _intent())

    def _segment(self) -> str:
        return self._random.choice(SEGMENTS)

    def _config(self) -> dict[str, Any]:
        return {"match": self._random.choice(list(Match)), "conditions": self._random.choice(CONDITIONS)}

    def _users(self) -> tuple[str, ...]:
        return tuple(self._random.sample(USERS, self._random.randint(1, 6)))


def _intent() -> Intent:
    return Intent(caller=None, action="Test")


def meaning(snapshot: Snapshot) -> dict[str, Any]:
    """Everything that a snapshot says. Entries of segments that are gone may linger: nothing asks for them."""
    living = {segment.segment_id for segment in snapshot.segments.values()}
    plans = snapshot.select(()).plans
    contexts = [EvaluationContext(user_id=user, attributes=sent) for user in USERS for sent in ATTRIBUTES]
    return {
        "revision": snapshot.revision,
        "flags": [*snapshot.flags.items()],
        "segments": [*snapshot.segments.items()],
        "plans": [*snapshot.plans.items()],
        "members": {user: snapshot.members.find(user).keys() & living for user in USERS},
        "counts": {number: snapshot.members.count(number) for number in living},
        "answers": [snapshot.evaluate(plans, context) for context in contexts],
    }


@pytest.mark.parametrize("seed", range(6))
def test_catching_up_by_the_change_log_ends_where_loading_everything_does(database: Database, seed: int) -> None:
    random, store = Random(seed), SnapshotStore(database)
    editor = Editor(database, random)
    followed = store.load()

    for _ in range(40):
        for _ in range(random.randint(1, 5)):
            editor.edit()
        followed = store.load_since(followed)
        assert meaning(followed) == meaning(store.load())


def test_members_of_a_deleted_segment_do_not_return_with_its_key(
    database: Database,
) -> None:
    """On one that saw each change, and on one that saw them all at once."""
    store, editor = SnapshotStore(database), Editor(database, Random(0))
    segments, members = editor._segments, editor._members
    segments.create(SegmentConfig(key="s1"), _intent())
    members.add(MemberEdit(segment_key="s1", user_ids=("anna",)), _intent())
    base = attentive = store.load()
    changes: Iterable[Callable[[], object]] = (
        lambda: segments.delete("s1", "", _intent()),
        lambda: segments.create(SegmentConfig(key="s1"), _intent()),
    )

    for change in changes:
        change()
        attentive = store.load_since(attentive)

    for snapshot in (attentive, store.load_since(base)):
        assert snapshot.segments["s1"].segment_id not in snapshot.members.find("anna")
    assert base.segments["s1"].segment_id in base.members.find("anna")


QUERIES = {
    "find a segment": (FIND_SEGMENT, "segments_key_key"),
    "list segments": (LIST_SEGMENTS, "segments_key_key"),
    "count the members of listed segments": (LIST_SEGMENTS, "segment_members_pkey"),
    "count members": (COUNT_MEMBERS, "segment_members_pkey"),
    "list members": (LIST_MEMBERS, "segment_members_pkey"),
    "who uses a segment": (USED_BY, "flag_segments_segment_idx"),
}


@pytest.mark.parametrize(("query", "index"), QUERIES.values(), ids=QUERIES.keys())
def test_a_hot_query_uses_its_index(database: Database, query: Any, index: str) -> None:
    wanted = {"segment_id": 7, "key": "s7", "key_prefix": None, "after": "", "limit": 100}
    with database.write() as conn:
        _fill(conn)
        plan = conn.execute("EXPLAIN " + query, wanted).fetchall()

    assert any(index in line for (line,) in plan), plan


def _fill(conn: Connection) -> None:
    """Add enough segments and members for the planner to prefer an index, if it can use one."""
    conn.execute("INSERT INTO subjects (user_id) SELECT 'u' || n FROM generate_series(1, 2000) n")
    conn.execute("""
        INSERT INTO segments (key, match, create_time, update_time, revision)
        SELECT 's' || n, 'ALL', now(), now(), 0 FROM generate_series(1, 2000) n
    """)
    conn.execute("""
        INSERT INTO segment_members (segment_id, subject_id)
        SELECT segment_id, subject_id FROM segments JOIN subjects ON hashtext(user_id) % 200 = segment_id % 200
    """)
    conn.execute("""
        INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage, create_time, update_time,
                                   revision)
        SELECT 'f' || n, true, 'off', 0, now(), now(), 0 FROM generate_series(1, 2000) n
    """)
    conn.execute("""
        INSERT INTO flag_segments (flag_id, position, segment_id, variant)
        SELECT f.flag_id, 0, s.segment_id, 'on' FROM feature_flags f JOIN segments s ON s.key = 's' || substr(f.key, 2)
    """)
    conn.execute("ANALYZE segments, segment_members, subjects, feature_flags, flag_segments")
