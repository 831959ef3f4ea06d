"""Previews: what is told of many users at once is what is told of each, and nothing but the flag is another."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper_grpc.domain.commands import FlagUpdate
from gatekeeper_grpc.domain.errors import Changed, InvalidArgument, NotFound, ResourceExhausted
from gatekeeper_grpc.domain.evaluation import EvaluationContext, Reason
from gatekeeper_grpc.domain.flag import OFF, ON, SegmentTarget
from gatekeeper_grpc.domain.preview import FlagPreview
from gatekeeper_grpc.domain.snapshot import Snapshot, SnapshotDelta
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from tests.support.flags import flag, on_for
from tests.support.segments import segment

USERS = ("alice", "bob", "zoé", *(f"user-{number}" for number in range(20)))
_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "enabled": st.booleans(),
        "default_variant": st.sampled_from([ON, OFF]),
        "rollout_percentage": st.sampled_from([0, 5, 50, 100]),
        "segment_targets": st.sampled_from([(), on_for("friends")]),
    },
)
_TARGETS = st.dictionaries(st.sampled_from(USERS), st.integers(0, 1), max_size=3)


def snapshot_of(fields: Mapping[str, Any], targets: Mapping[str, int], *, members: Sequence[str] = ()) -> Snapshot:
    return Snapshot.build(
        revision=7,
        flags=[flag("a", flag_id=1, **fields), flag("b", flag_id=2)],
        segments=[segment("friends", segment_id=1)],
        targets=UserIndex().with_entries([UserEntry(user, 1, tag) for user, tag in targets.items()]),
        members=UserIndex().with_entries([UserEntry(user, 1, 0) for user in members]),
    )


def preview(snapshot: Snapshot, *, etag: str = "", **changes: Any) -> FlagPreview:
    return FlagPreview(snapshot, FlagUpdate(key="a", etag=etag, changes=changes))


@given(before=_FIELDS, changes=_FIELDS, targets=_TARGETS, user_ids=st.lists(st.sampled_from(USERS), max_size=30))
def test_what_is_told_of_many_users_is_what_is_told_of_each(
    before: Mapping[str, Any], changes: Mapping[str, Any], targets: Mapping[str, int], user_ids: Sequence[str]
) -> None:
    previewed = preview(snapshot_of(before, targets, members=USERS[:5]), **changes)

    found = previewed.of_many(user_ids, [user_id.encode() for user_id in user_ids])

    each = [previewed.of_one(EvaluationContext(user_id=user_id)) for user_id in user_ids]
    assert +Counter(found.counts) == Counter((effect.before.code, effect.after.code) for effect in each)
    assert found.changed == [at for at, effect in enumerate(each) if effect.is_change]
    assert found.targeted == [at for at, effect in enumerate(each) if effect.shows_target]


@given(before=_FIELDS, changes=_FIELDS, targets=_TARGETS, user_id=st.none() | st.sampled_from(USERS))
def test_one_user_gets_what_both_snapshots_give(
    before: Mapping[str, Any], changes: Mapping[str, Any], targets: Mapping[str, int], user_id: str | None
) -> None:
    snapshot, context = snapshot_of(before, targets, members=USERS[:5]), EvaluationContext(user_id=user_id)
    changed = snapshot_of({**before, **changes}, targets, members=USERS[:5])

    effect = preview(snapshot, **changes).of_one(context)

    assert [effect.before] == snapshot.evaluate(snapshot.select(["a"]).plans, context)
    assert [effect.after] == changed.evaluate(changed.select(["a"]).plans, context)


def test_the_snapshot_that_is_served_stays_as_it_is() -> None:
    snapshot = snapshot_of({"enabled": True}, {"alice": 1})
    served = dict(snapshot.flags), dict(snapshot.plans)

    previewed = preview(snapshot, rollout_percentage=100)

    assert (snapshot.flags, snapshot.plans) == served
    assert (previewed.before.config.rollout_percentage, previewed.after.config.rollout_percentage) == (0, 100)
    assert (previewed.after.etag, previewed.after.update_time) == (previewed.before.etag, previewed.before.update_time)


@pytest.mark.parametrize(
    ("before", "changes", "is_shown"),
    [
        ({"enabled": False}, {"enabled": True}, True),
        ({"enabled": True}, {"rollout_percentage": 50}, False),
        ({"enabled": True}, {"enabled": False}, False),
        ({"enabled": True}, {"segment_targets": on_for("friends")}, False),
    ],
    ids=["enabled", "another rollout", "disabled", "aimed, but targeted already"],
)
def test_a_target_is_shown_if_evaluation_does_not_tell_it(
    before: Mapping[str, Any], changes: Mapping[str, Any], *, is_shown: bool
) -> None:
    effect = preview(snapshot_of(before, {"alice": 1}, members=["alice"]), **changes).of_one(
        EvaluationContext(user_id="alice")
    )

    assert effect.shows_target is is_shown


def test_who_is_in_a_segment_is_shown_by_a_flag_that_would_target_it() -> None:
    previewed = preview(snapshot_of({"enabled": True}, {}, members=["alice"]), segment_targets=on_for("friends"))

    member, other = (previewed.of_one(EvaluationContext(user_id=user_id)) for user_id in ("alice", "bob"))

    assert (member.after.reason, member.shows_target) == (Reason.TARGETING_MATCH, True)
    assert not other.shows_target


def test_a_change_is_refused_as_an_update_is() -> None:
    snapshot = snapshot_of({}, {})
    unknown = SegmentTarget(segment_key="unknown", variant=ON)

    with pytest.raises(NotFound, match="flag 'z'"):
        FlagPreview(snapshot, FlagUpdate(key="z", changes={}))
    with pytest.raises(Changed):
        preview(snapshot, etag="another")
    with pytest.raises(InvalidArgument, match=r"flag\.rollout_percentage"):
        preview(snapshot, rollout_percentage=101)
    with pytest.raises(NotFound, match="segment 'unknown'"):
        preview(snapshot, segment_targets=(*on_for("friends"), unknown))


def test_segment_targets_of_all_flags_together_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatekeeper_grpc.domain.preview.MAX_SEGMENT_TARGETS_IN_ALL", 1)
    both = Snapshot.build(
        revision=1,
        flags=[flag("a", flag_id=1, enabled=True), flag("b", flag_id=2, segment_targets=on_for("friends"))],
        segments=[segment("friends", segment_id=1)],
    )

    with pytest.raises(ResourceExhausted):
        preview(both, segment_targets=on_for("friends"))
    other = both.after(SnapshotDelta(revision=2, flags={"b": flag("b", flag_id=2)}))
    assert preview(other, segment_targets=on_for("friends")).is_aimed
