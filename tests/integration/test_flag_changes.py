"""What snapshots say of changed flags, against a real PostgreSQL: nobody who is told has a wrong answer left."""

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from gatekeeper_grpc.cache.change_history import ChangeHistory
from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.commands import FlagUpdate, MemberEdit, SegmentUpdate, TargetEdit, UserUpdate
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.flag import OFF, ON, FlagConfig, SegmentTarget
from gatekeeper_grpc.domain.mutation import ChangeType, Intent
from gatekeeper_grpc.domain.segment import Match, SegmentConfig
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user import UserProfile
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.members import MemberStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.segments import SegmentStore
from gatekeeper_grpc.store.snapshots import loader as snapshots_module
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from gatekeeper_grpc.store.snapshots.replica import ReplicaFirst
from gatekeeper_grpc.store.targets import TargetStore
from gatekeeper_grpc.store.users import UserStore
from tests.support.servers import KEYS

INTENT = Intent(caller=None, action="Test")
FLAGS, SEGMENTS, USERS = ["f1", "f2", "f3"], ["s1", "s2"], ["alice", "bob", "carol"]
NAMES = ["plan", "age"]
VALUES: list[JsonValue] = ["gold", 1, True]


class Editor:
    """Makes random changes of everything that an answer may depend on; those that are refused change nothing."""

    def __init__(self, database: Database, random: Random) -> None:
        mutations = MutationRunner(database, KEYS.data)
        self._flags = FlagStore(database, mutations)
        self._targets = TargetStore(database, mutations)
        self._segments = SegmentStore(database, mutations)
        self._members = MemberStore(database, mutations)
        self._users = UserStore(database, mutations)
        self._random = random
        self._any = random.choice

    def begin(self) -> None:
        """Make everything that answers may depend on."""
        for key in SEGMENTS:
            self._segments.create(SegmentConfig(key=key, match=Match.ANY, conditions=self._conditions()), INTENT)
        for user in USERS:
            self._users.create(UserProfile(user_id=user, attributes={"plan": "free"}), INTENT)
        for key in FLAGS:
            self._flags.create(FlagConfig(key=key, enabled=True, segment_targets=self._segment_targets()), INTENT)

    def edit(self) -> None:
        often: list[Callable[[], object]] = [self._member, self._write_user, self._write_user, self._update_segment]
        seldom = [self._update_flag, self._target, self._delete_user, self._create_flag, self._delete_flag]
        rarely = [self._delete_segment, self._create_segment]
        with suppress(GatekeeperError):
            self._any([*often * 4, *seldom * 2, *rarely])()

    def _create_flag(self) -> None:
        self._flags.create(
            FlagConfig(key=self._any(FLAGS), enabled=True, segment_targets=self._segment_targets()), INTENT
        )

    def _update_flag(self) -> None:
        changes: dict[str, Any] = {
            "segment_targets": self._segment_targets(),
            "rollout_percentage": self._any([0, 0, 50]),
        }
        self._flags.update(FlagUpdate(key=self._any(FLAGS), changes=changes), INTENT)

    def _segment_targets(self) -> tuple[SegmentTarget, ...]:
        keys = self._random.sample(SEGMENTS, self._any([1, 1, 2]))
        return tuple(SegmentTarget(segment_key=key, variant=ON) for key in keys)

    def _delete_flag(self) -> None:
        self._flags.delete(self._any(FLAGS), "", INTENT)

    def _target(self) -> None:
        variant = self._any([ON, OFF, None])
        self._targets.edit(TargetEdit(flag_key=self._any(FLAGS), user_ids=(self._any(USERS),), variant=variant), INTENT)

    def _conditions(self) -> tuple[Condition, ...]:
        return (Condition(attribute=self._any(NAMES), operator=Operator.EQUALS, values=(self._any(VALUES),)),)

    def _create_segment(self) -> None:
        self._segments.create(SegmentConfig(key=self._any(SEGMENTS), conditions=self._conditions()), INTENT)

    def _update_segment(self) -> None:
        changes = {"conditions": self._conditions()}
        self._segments.update(SegmentUpdate(key=self._any(SEGMENTS), changes=changes), INTENT)

    def _delete_segment(self) -> None:
        self._segments.delete(self._any(SEGMENTS), "", INTENT)

    def _member(self) -> None:
        edit = MemberEdit(segment_key=self._any(SEGMENTS), user_ids=(self._any(USERS),))
        self._any([self._members.add, self._members.remove])(edit, INTENT)

    def _write_user(self) -> None:
        user_id, attributes = self._any(USERS), {self._any(NAMES): self._any(VALUES)}
        try:
            self._users.update(UserUpdate(user_id=user_id, attributes=attributes, names=frozenset(attributes)), INTENT)
        except GatekeeperError:
            self._users.create(UserProfile(user_id=user_id, attributes=attributes), INTENT)

    def _delete_user(self) -> None:
        self._users.delete(self._any(USERS), "", INTENT)


def answers(snapshot: Snapshot) -> dict[str, list[bool]]:
    """What each flag answers the users."""
    plans = snapshot.select(()).plans
    rows = [snapshot.evaluate(plans, EvaluationContext(user_id=user)) for user in USERS]
    return {plan.key: [row[nth].value for row in rows] for nth, plan in enumerate(plans)}


def check(told: dict[str, ChangeType], before: dict[str, list[bool]], now: dict[str, list[bool]]) -> None:
    """A client that knew the results before, and drops those of the reported flags, has no wrong result left."""
    assert {key: value for key, value in before.items() if key not in told} == {
        key: value for key, value in now.items() if key not in told
    }
    gone = {key for key, change in told.items() if change is ChangeType.DELETED}
    assert (before.keys() | told.keys()) - gone == now.keys()


def check_all(history: ChangeHistory, answered: dict[int, dict[str, list[bool]]]) -> None:
    """Check a client that resumes from one of the last revisions that were evaluated."""
    now = history.position.revision
    for revision in sorted(revision for revision in answered if revision <= now)[-8:]:
        told = history.since(history.at(revision)).changes
        assert told is not None
        check(dict(told), answered[revision], answered[now])


@pytest.mark.parametrize("seed", range(3))
def test_a_client_back_from_any_revision_hears_of_every_changed_flag(seed: int, database: Database) -> None:
    random = Random(seed)
    editor, store = Editor(database, random), SnapshotStore(database)
    editor.begin()
    snapshot = store.load()
    lived, answered = ChangeHistory(), {snapshot.revision: answers(snapshot)}
    lived.extend(snapshot)
    for _ in range(50):
        editor.edit()
        # On another instance, which is as new as can be, somebody evaluates.
        newest = store.load()
        answered[newest.revision] = answers(newest)
        fresh = ChangeHistory()
        fresh.extend(newest)
        check_all(fresh, answered)
        if random.random() < 0.4:
            snapshot = store.load_since(snapshot)
            lived.extend(snapshot)
            check_all(lived, answered)


def test_attributes_that_no_segment_names_change_no_flag(database: Database) -> None:
    users = UserStore(database, MutationRunner(database, KEYS.data))
    segments, store = SegmentStore(database, MutationRunner(database, KEYS.data)), SnapshotStore(database)
    condition = Condition(attribute="plan", operator=Operator.EQUALS, values=("gold",))
    segments.create(SegmentConfig(key="s1", conditions=(condition,)), INTENT)
    set_segment_targets = (SegmentTarget(segment_key="s1", variant=ON),)
    FlagStore(database, MutationRunner(database, KEYS.data)).create(
        FlagConfig(key="f1", segment_targets=set_segment_targets), INTENT
    )
    before = store.load()
    users.create(UserProfile(user_id="alice", attributes={"mood": "good"}), INTENT)
    unconcerned = store.load_since(before)
    users.update(UserUpdate(user_id="alice", attributes={"plan": "free"}, names=frozenset({"plan"})), INTENT)
    concerned = store.load_since(unconcerned)

    assert unconcerned.changes is not None
    assert concerned.changes is not None
    assert (unconcerned.changes.since, [*unconcerned.changes.changes]) == (before.revision, [])
    assert [(change.flag_key, change.type) for change in concerned.changes.changes] == [("f1", ChangeType.UPDATED)]


def test_no_more_of_the_log_is_read_than_a_history_needs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "_MAX_DELTA_REVISIONS", 3)
    flags, store = FlagStore(database, MutationRunner(database, KEYS.data)), SnapshotStore(database)
    for key in ("a", "b", "c", "d"):
        flags.create(FlagConfig(key=key), INTENT)
    changes = store.load().changes

    assert changes is not None
    assert (changes.since, [change.flag_key for change in changes.changes]) == (1, ["b", "c", "d"])


def test_changes_on_a_lagging_replica_are_told_with_those_it_lacks(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = FlagStore(database, MutationRunner(database, KEYS.data))
    primary, replica = SnapshotStore(database), SnapshotStore(database)
    flags.create(FlagConfig(key="a"), INTENT)
    lagging = primary.load()
    monkeypatch.setattr(replica, "load", lambda **_sharing: lagging)
    flags.create(FlagConfig(key="b"), INTENT)
    changes = ReplicaFirst(primary, replica).load().changes

    assert changes is not None
    assert (changes.since, [change.flag_key for change in changes.changes]) == (0, ["a", "b"])
