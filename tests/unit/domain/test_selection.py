"""The flags of a request, compiled: values, reasons and variants are those of the waterfall, for one user and many."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper_grpc.domain import selection as module
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.flag import VARIANTS, Flag, SegmentTarget
from gatekeeper_grpc.domain.selection import Selection, Selections
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from tests.support.flags import flag
from tests.support.segments import segment

USERS = ("alice", "bob", "zoé", "u" * 256)
SEGMENTS = (
    segment("friends", segment_id=1),
    segment("paying", Condition(attribute="plan", operator=Operator.EQUALS, values=("pro",)), segment_id=2),
)


def _flag(number: int, config: Mapping[str, Any]) -> Flag:
    return flag(f"flag-{number}", flag_id=number, **config)


_CONFIGS = st.fixed_dictionaries(
    {
        "enabled": st.booleans(),
        "default_variant": st.sampled_from(VARIANTS),
        "rollout_percentage": st.sampled_from([0, 1, 50, 99, 100]),
        "segment_targets": st.lists(
            st.builds(
                SegmentTarget, segment_key=st.sampled_from(["friends", "paying"]), variant=st.sampled_from(VARIANTS)
            ),
            max_size=2,
            unique_by=lambda target: target.segment_key,
        ).map(tuple),
    }
)
_ENTRIES = st.builds(UserEntry, st.sampled_from(USERS), st.integers(1, 4), st.integers(0, 1))


@st.composite
def _snapshots(draw: st.DrawFn) -> Snapshot:
    """Up to four flags of all kinds, individual targets, members of a segment."""
    return Snapshot.build(
        revision=7,
        flags=[_flag(number, config) for number, config in enumerate(draw(st.lists(_CONFIGS, max_size=4)), 1)],
        segments=SEGMENTS,
        targets=UserIndex().with_entries(draw(st.lists(_ENTRIES, max_size=4))),
        members=UserIndex().with_entries([UserEntry(user, 1, 0) for user in draw(st.sets(st.sampled_from(USERS)))]),
    )


@given(
    snapshot=_snapshots(),
    user_id=st.none() | st.sampled_from(USERS) | st.text(min_size=1, max_size=20),
    plan=st.sampled_from(["pro", "free"]),
)
def test_what_is_decided_for_a_user_is_what_the_waterfall_gives(
    snapshot: Snapshot, user_id: str | None, plan: str
) -> None:
    context = EvaluationContext(user_id=user_id, attributes={"plan": plan})
    selection = snapshot.select(())

    decisions = snapshot.decide(selection, context)

    details = snapshot.evaluate(selection.plans, context)
    assert [*decisions.values] == [detail.value for detail in details]
    assert selection.tally(decisions) == sum(detail.tally for detail in details)
    assert selection.codes(decisions) == [detail.code for detail in details]


@given(snapshot=_snapshots(), user_ids=st.lists(st.sampled_from(USERS) | st.text(min_size=1, max_size=20), max_size=6))
def test_what_is_decided_for_many_users_is_what_is_for_each(snapshot: Snapshot, user_ids: Sequence[str]) -> None:
    selection = snapshot.select(())

    decisions = snapshot.decide_all(selection, user_ids, [user_id.encode() for user_id in user_ids])

    of_each = [snapshot.decide(selection, EvaluationContext(user_id=user_id)) for user_id in user_ids]
    assert decisions.values == b"".join(each.values for each in of_each)
    assert selection.tally(decisions) == sum(map(selection.tally, of_each))
    codes = [selection.codes(decisions, user=user) for user in range(len(user_ids))]
    assert codes == [selection.codes(each) for each in of_each]
    for user, all_codes in enumerate(codes):
        assert selection.codes(decisions, user=user, first=1, step=2) == all_codes[1::2]


def test_a_selection_is_compiled_once_for_the_same_keys() -> None:
    snapshot = Snapshot.build(revision=1, flags=[flag("a"), flag("b")])

    assert snapshot.selected(("a",)) is None
    selection = snapshot.select(["a"])

    assert snapshot.select(["a"]) is snapshot.selected(("a",)) is selection
    assert snapshot.select(["a", "b"]) is not selection


def test_selections_of_all_threads_are_one() -> None:
    selections, begin, found = Selections(), threading.Barrier(8), list[Selection]()

    def add() -> None:
        begin.wait()
        found.append(selections.add(("a",), Selection()))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {id(selection) for selection in found} == {id(selections.get(("a",)))}


def test_many_selections_are_forgotten_except_the_one_of_all_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_REMEMBERED_KEYS", 4)
    selections = Selections()
    asked = [(), ("a", "b"), ("c",), ("d",), ("e", "f"), ("g", "h", "i", "j")]

    kept = []
    for keys in asked:
        selections.add(keys, Selection())
        kept.append([known for known in asked if selections.get(known) is not None])

    assert kept[3:] == [asked[:4], [(), ("c",), ("d",), ("e", "f")], [(), ("g", "h", "i", "j")]]
