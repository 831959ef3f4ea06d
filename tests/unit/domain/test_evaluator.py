"""The waterfall: for one flag and one user, the first rule that applies decides; its reason says which."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_grpc.domain.bucketing import bucket
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail, Reason
from gatekeeper_grpc.domain.flag import OFF, ON, VARIANTS, FlagConfig, SegmentTarget
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from tests.support.flags import flag
from tests.support.segments import segment

KEY = "new_checkout"
ALICE_SLOT = 49  # a golden vector
ALICE = EvaluationContext(user_id="alice")
PRO = {"plan": "pro"}
ANONYMOUS = EvaluationContext(user_id=None, attributes=PRO)

# Alice is a member of `friends`; a user with the plan "pro" is in `paying`; nobody is in `nobody`.
SEGMENTS = (
    segment("friends", segment_id=1),
    segment("paying", Condition(attribute="plan", operator=Operator.EQUALS, values=("pro",)), segment_id=2),
    segment("nobody", segment_id=3),
)
MEMBERS = [UserEntry("alice", 1, 0)]


def targeting(**variants: str) -> tuple[SegmentTarget, ...]:
    """Segment targets, in this order."""
    return tuple(SegmentTarget(segment_key=key, variant=variant) for key, variant in variants.items())


def answer(context: EvaluationContext, targets: Mapping[str, str], **config: Any) -> EvaluationDetail:
    """Evaluate one flag, enabled unless `config` says otherwise; `targets` are variants by user."""
    entries = [UserEntry(user_id, 1, VARIANTS.index(variant)) for user_id, variant in targets.items()]
    snapshot = Snapshot.build(
        revision=1,
        flags=[flag(KEY, **{"enabled": True, **config})],
        segments=SEGMENTS,
        targets=UserIndex.build(entries),
        members=UserIndex.build(MEMBERS),
    )
    (detail,) = snapshot.evaluate(snapshot.select([KEY]).plans, context)
    return detail


def row(name: str, expected: EvaluationDetail, /, **flag_fields: Any) -> Any:
    targets = flag_fields.pop("targets", {})
    return pytest.param(targets, flag_fields, expected, id=name)


def match(variant: str, segment_key: str = "") -> EvaluationDetail:
    return EvaluationDetail(variant=variant, reason=Reason.TARGETING_MATCH, segment_key=segment_key)


def split(variant: str, slot: int | None = ALICE_SLOT) -> EvaluationDetail:
    return EvaluationDetail(variant=variant, reason=Reason.SPLIT, bucket=slot)


def plain(variant: str, reason: Reason) -> EvaluationDetail:
    return EvaluationDetail(variant=variant, reason=reason)


HERSELF = {"alice": ON}
SOMEBODY_ELSE = {"bob": ON}
FULL = {"rollout_percentage": 100}
EVERYTHING_ON = {"targets": HERSELF, "segment_targets": targeting(friends=ON), **FULL}


@pytest.mark.parametrize(
    ("targets", "config", "expected"),
    [
        row("1 disabled wins over all that would be on", plain(OFF, Reason.DISABLED), **EVERYTHING_ON, enabled=False),
        row("1 disabled serves a default of on", plain(ON, Reason.DISABLED), enabled=False, default_variant=ON),
        row("1 disabled goes before static", plain(OFF, Reason.DISABLED), enabled=False, **FULL),
        row("2 a target off wins over segment and rollout", match(OFF), **{**EVERYTHING_ON, "targets": {"alice": OFF}}),
        row(
            "2 a target on wins over a segment off", match(ON), targets=HERSELF, segment_targets=targeting(friends=OFF)
        ),
        row("2 the target of somebody else is not hers", plain(OFF, Reason.DEFAULT), targets=SOMEBODY_ELSE),
        row(
            "3 a segment off wins over a full rollout",
            match(OFF, "friends"),
            segment_targets=targeting(friends=OFF),
            **FULL,
        ),
        row("3 a segment on wins over the default", match(ON, "friends"), segment_targets=targeting(friends=ON)),
        row("3 the first segment decides", match(OFF, "friends"), segment_targets=targeting(friends=OFF, paying=ON)),
        row(
            "3 and the first in the other order", match(ON, "paying"), segment_targets=targeting(paying=ON, friends=OFF)
        ),
        row(
            "3 a segment without her is passed over",
            match(ON, "paying"),
            segment_targets=targeting(nobody=OFF, paying=ON),
        ),
        row("4 a slot below the rollout is on", split(ON), rollout_percentage=ALICE_SLOT + 1),
        row("4 a slot on the line is not", split(OFF), rollout_percentage=ALICE_SLOT),
        row("5 a missed draw serves the default", split(ON), rollout_percentage=ALICE_SLOT, default_variant=ON),
        row("static at a rollout of 0", plain(OFF, Reason.STATIC)),
        row("static at a rollout of 0 with a default of on", plain(ON, Reason.STATIC), default_variant=ON),
        row("static at a rollout of 100", plain(ON, Reason.STATIC), **FULL),
        row("with any target 0 is the default", plain(ON, Reason.DEFAULT), targets=SOMEBODY_ELSE, default_variant=ON),
        row("with any target 100 is a draw", split(ON), targets=SOMEBODY_ELSE, **FULL),
        row("with any segment 0 is the default", plain(OFF, Reason.DEFAULT), segment_targets=targeting(nobody=ON)),
        row("with any segment 100 is a draw", split(ON), segment_targets=targeting(nobody=ON), **FULL),
    ],
)
def test_the_first_rule_that_applies_decides(
    targets: Mapping[str, str], config: dict[str, Any], expected: EvaluationDetail
) -> None:
    assert answer(EvaluationContext(user_id="alice", attributes=PRO), targets, **config) == expected


@pytest.mark.parametrize(
    ("targets", "config", "expected"),
    [
        row("nobody's targets", plain(OFF, Reason.DEFAULT), targets={"": ON, "None": ON}),
        row("a segment by the attributes sent", match(ON, "paying"), segment_targets=targeting(friends=OFF, paying=ON)),
        row("no draw at 99", plain(OFF, Reason.DEFAULT), rollout_percentage=99),
        row("on at 100, without a slot", split(ON, None), targets=SOMEBODY_ELSE, **FULL),
        row("static all the same", plain(ON, Reason.STATIC), **FULL),
        row("disabled all the same", plain(OFF, Reason.DISABLED), **EVERYTHING_ON, enabled=False),
    ],
)
def test_an_anonymous_user_is_never_targeted_and_never_drawn(
    targets: Mapping[str, str], config: dict[str, Any], expected: EvaluationDetail
) -> None:
    assert answer(ANONYMOUS, targets, **config) == expected


def test_a_member_is_in_a_segment_whatever_its_conditions_say() -> None:
    members = UserIndex.build([UserEntry("alice", 2, 0)])
    snapshot = Snapshot.build(
        revision=1,
        flags=[flag(KEY, enabled=True, segment_targets=targeting(paying=ON))],
        segments=SEGMENTS,
        members=members,
    )

    assert snapshot.evaluate(snapshot.select([KEY]).plans, ALICE) == [match(ON, "paying")]


def test_answers_of_several_flags_stand_in_the_order_of_their_plans() -> None:
    flags = [flag(key, flag_id=number, enabled=True, default_variant=key) for number, key in enumerate(VARIANTS)]
    snapshot = Snapshot.build(revision=1, flags=flags)

    details = snapshot.evaluate(snapshot.select([ON, OFF]).plans, ALICE)

    assert [detail.variant for detail in details] == [ON, OFF]


def oracle(  # noqa: PLR0911 - one return for each rule
    config: FlagConfig, targets: Mapping[str, str], in_segments: set[str], user_id: str | None
) -> tuple[str, Reason, str, int | None]:
    """The waterfall of protos/gatekeeper/v1/flag.proto and the contract's rules on reasons, read aloud."""
    rollout, default = config.rollout_percentage, config.default_variant
    if not config.enabled:
        return default, Reason.DISABLED, "", None
    if not targets and not config.segment_targets and rollout in (0, 100):
        return ON if rollout == 100 else default, Reason.STATIC, "", None
    if user_id is not None and user_id in targets:
        return targets[user_id], Reason.TARGETING_MATCH, "", None
    for target in config.segment_targets:
        if target.segment_key in in_segments:
            return target.variant, Reason.TARGETING_MATCH, target.segment_key, None
    if rollout == 100 and user_id is None:
        return ON, Reason.SPLIT, "", None
    if rollout == 0 or user_id is None:
        return default, Reason.DEFAULT, "", None
    slot = bucket(user_id, config.key)
    return ON if slot < rollout else default, Reason.SPLIT, "", slot


variants = st.sampled_from(VARIANTS)
users = st.sampled_from(["alice", "bob", "ünï", "u4"])
configs = st.builds(
    FlagConfig,
    key=st.sampled_from([KEY, "other"]),
    enabled=st.sampled_from([True, True, True, False]),
    default_variant=variants,
    rollout_percentage=st.sampled_from([0, 1, 49, 50, 99, 100]) | st.integers(0, 100),
    segment_targets=st.lists(
        st.builds(SegmentTarget, segment_key=st.sampled_from([segment.key for segment in SEGMENTS]), variant=variants),
        unique_by=lambda target: target.segment_key,
    ).map(tuple),
)


@settings(max_examples=300)
@given(
    config=configs,
    targets=st.dictionaries(users, variants, max_size=2),
    members=st.sets(st.tuples(users, st.integers(1, 3))),
    user_id=st.none() | users,
    plan=st.sampled_from(["pro", "free", None]),
)
def test_any_flag_and_user_get_what_the_contract_says(
    config: FlagConfig,
    targets: dict[str, str],
    members: set[tuple[str, int]],
    user_id: str | None,
    plan: str | None,
) -> None:
    snapshot = Snapshot.build(
        revision=1,
        flags=[flag(flag_id=9, **{name: getattr(config, name) for name in FlagConfig.__dataclass_fields__})],
        segments=SEGMENTS,
        targets=UserIndex().with_entries(
            UserEntry(user, 9, VARIANTS.index(variant)) for user, variant in targets.items()
        ),
        members=UserIndex().with_entries(UserEntry(user, segment_id, 0) for user, segment_id in members),
    )
    in_segments = {
        segment.key
        for segment in SEGMENTS
        if (user_id, segment.segment_id) in members or (segment.key == "paying" and plan == "pro")
    }

    context = EvaluationContext(user_id=user_id, attributes={"plan": plan})
    (detail,) = snapshot.evaluate(snapshot.select([config.key]).plans, context)

    assert (detail.variant, detail.reason, detail.segment_key, detail.bucket) == oracle(
        config, targets, in_segments, user_id
    )
    assert detail.value is (detail.variant == ON)
