"""The snapshot: a delta leads to the same as a complete build, and no flag inherits from another one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings

from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail, Reason
from gatekeeper_grpc.domain.flag import OFF, ON, Flag, SegmentTarget
from gatekeeper_grpc.domain.segment import Segment
from gatekeeper_grpc.domain.snapshot import Snapshot, SnapshotDelta
from gatekeeper_grpc.domain.user_index import UserEntry
from tests.support.flags import flag
from tests.support.segments import segment
from tests.support.strategies import Entries, answers, build, index, mail_segment, states

_Key = TypeVar("_Key")


def one_answer(snapshot: Snapshot, key: str, user: str) -> EvaluationDetail:
    (detail,) = snapshot.evaluate(snapshot.select([key]).plans, EvaluationContext(user_id=user))
    return detail


def changed(before: Mapping[_Key, Any], after: Mapping[_Key, Any]) -> dict[_Key, Any]:
    """What changed between two mappings; None: gone."""
    return {key: after.get(key) for key in {*before, *after} if before.get(key) != after.get(key)}


def changed_entries(before: Entries, after: Entries) -> list[UserEntry]:
    return [UserEntry(user, owner, tag) for (user, owner), tag in changed(before, after).items()]


@settings(max_examples=100)
@given(before=states(), after=states())
def test_a_delta_leads_to_what_a_build_from_everything_gives(before: dict[str, Any], after: dict[str, Any]) -> None:
    delta = SnapshotDelta(
        revision=2,
        flags=changed(before["flags"], after["flags"]),
        segments=changed(before["segments"], after["segments"]),
        targets=changed_entries(before["targets"], after["targets"]),
        members=changed_entries(before["members"], after["members"]),
    )

    led, built = build(before, revision=1).after(delta), build(after, revision=2)

    assert led.revision == built.revision
    assert [*led.flags.items()] == [*built.flags.items()]
    assert [*led.segments.items()] == [*built.segments.items()]
    assert [*led.plans.items()] == [*built.plans.items()]
    assert answers(led) == answers(built)


def test_a_delta_leaves_the_snapshot_before_it_as_it_was() -> None:
    before = Snapshot.build(revision=1, flags=[flag("a", enabled=False)])

    before.after(SnapshotDelta(revision=2, flags={"a": flag("a", enabled=True), "b": flag("b", flag_id=2)}))

    assert (before.revision, [*before.flags]) == (1, ["a"])
    assert one_answer(before, "a", "alice").reason is Reason.DISABLED


def test_a_delta_without_changes_shares_everything() -> None:
    before = Snapshot.build(revision=1, flags=[flag("a")])

    after = before.after(SnapshotDelta(revision=2))

    assert (after.revision, after.flags is before.flags, after.plans is before.plans) == (2, True, True)


def test_the_first_target_ends_static_and_the_last_one_gone_brings_it_back() -> None:
    untargeted = Snapshot.build(revision=1, flags=[flag("a", enabled=True)])
    targeted = untargeted.after(SnapshotDelta(revision=2, targets=[UserEntry("bob", 1, 1)]))
    again = targeted.after(SnapshotDelta(revision=3, targets=[UserEntry("bob", 1, None)]))

    reasons = [one_answer(snapshot, "a", "alice").reason for snapshot in (untargeted, targeted, again)]

    assert reasons == [Reason.STATIC, Reason.DEFAULT, Reason.STATIC]


@pytest.mark.parametrize("deleted_first", [True, False], ids=["deleted, then created", "both in one delta"])
def test_a_flag_created_again_does_not_inherit_targets(*, deleted_first: bool) -> None:
    on_for_alice = index({("alice", 1): 1})
    snapshot = Snapshot.build(revision=1, flags=[flag("a", flag_id=1, enabled=True)], targets=on_for_alice)
    if deleted_first:
        snapshot = snapshot.after(SnapshotDelta(revision=2, flags={"a": None}))

    again = snapshot.after(SnapshotDelta(revision=3, flags={"a": flag("a", flag_id=2, enabled=True)}))

    assert one_answer(again, "a", "alice") == EvaluationDetail(variant=OFF, reason=Reason.STATIC)


def test_a_changed_segment_decides_differently_at_once() -> None:
    aimed = flag("a", enabled=True, segment_targets=(SegmentTarget(segment_key="staff", variant=ON),))
    before = Snapshot.build(revision=1, flags=[aimed], segments=[mail_segment("staff", 1, "@old.org")])
    after = before.after(SnapshotDelta(revision=2, segments={"staff": mail_segment("staff", 1, "@new.org")}))
    user = EvaluationContext(user_id="alice", attributes={"email": "alice@new.org"})

    values = [snapshot.evaluate(snapshot.select(["a"]).plans, user)[0].value for snapshot in (before, after)]

    assert values == [False, True]


FOUR = Snapshot.build(revision=1, flags=[flag(key, flag_id=number) for number, key in enumerate("dbca")])


@pytest.mark.parametrize(
    ("asked", "found", "unknown"),
    [
        pytest.param([], ["a", "b", "c", "d"], [], id="all, by key"),
        pytest.param(["c", "a"], ["c", "a"], [], id="in the order asked for"),
        pytest.param(["y", "b", "x"], ["b"], ["y", "x"], id="unknown ones apart, in their order"),
        pytest.param(["A"], [], ["A"], id="case makes another key"),
    ],
)
def test_a_request_selects_flags(asked: list[str], found: list[str], unknown: list[str]) -> None:
    selection = FOUR.select(asked)

    assert ([plan.key for plan in selection.plans], [*selection.unknown_flag_keys]) == (found, unknown)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        pytest.param({"bb": flag("bb", flag_id=9)}, ["a", "b", "bb", "c", "d"], id="created"),
        pytest.param({"b": None}, ["a", "c", "d"], id="deleted"),
        pytest.param({"b": None, "aa": flag("aa", flag_id=9)}, ["a", "aa", "c", "d"], id="one deleted, one created"),
        pytest.param({"b": replace(flag("b"), revision=2)}, ["a", "b", "c", "d"], id="updated"),
        pytest.param({"x": None}, ["a", "b", "c", "d"], id="created and deleted in between"),
    ],
)
def test_flags_stay_in_key_order_whatever_changes(changes: dict[str, Flag | None], keys: list[str]) -> None:
    after = FOUR.after(SnapshotDelta(revision=2, flags=changes))

    assert ([*after.flags], [*after.plans]) == (keys, keys)


def test_the_search_for_texts_is_prepared_when_texts_of_segments_change() -> None:
    first = Snapshot.build(revision=1, segments=[text_segment("a", 1, "x"), text_segment("b", 2, "y")])
    renamed = first.after(SnapshotDelta(revision=2, segments={"b": text_segment("b", 2, "y", description="new")}))
    edited = renamed.after(SnapshotDelta(revision=3, segments={"b": text_segment("b", 2, "z")}))
    reloaded = Snapshot.build(revision=3, segments=edited.segments.values(), sharing=edited)

    assert [snapshot.search.texts for snapshot in (first, edited)] == [{"x", "y"}, {"x", "z"}]
    assert (renamed.search, reloaded.search) == (first.search, edited.search)


def text_segment(key: str, segment_id: int, sought: str, **config: Any) -> Segment:
    condition = Condition(attribute="email", operator=Operator.CONTAINS, values=(sought,))
    return segment(key, condition, segment_id=segment_id, **config)
