"""What has to change for a configuration, of what there is."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from gatekeeper_grpc.domain.configuration import (
    Configuration,
    Deletion,
    WantedFlag,
    WantedSegment,
    WantedUser,
    WantedUsers,
)
from gatekeeper_grpc.domain.configuration_plan import (
    MAX_CHANGES,
    FlagStep,
    SegmentStep,
    SetOwner,
    SetState,
    SetStep,
    State,
    UserStep,
    changed_fields,
    plan,
)
from gatekeeper_grpc.domain.errors import Changed, GatekeeperError, InvalidArgument, NotFound, ResourceExhausted
from gatekeeper_grpc.domain.flag import OFF, ON, Flag, FlagConfig, SegmentTarget
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.segment import Segment, SegmentConfig
from gatekeeper_grpc.domain.set_hash import EMPTY, target_element
from gatekeeper_grpc.domain.user import UserProfile

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN, BOB, CY = (uuid4() for _ in range(3))
FLAG = Flag(flag_id=1, config=FlagConfig(key="flag"), create_time=NOW, update_time=NOW, revision=3)
SEGMENT = Segment(segment_id=2, config=SegmentConfig(key="segment"), create_time=NOW, update_time=NOW, revision=4)
TARGETS = SetOwner(ResourceType.TARGETS, "flag")


def state(targets: dict[UUID, str] | None = None) -> State:
    variants = targets or {}
    elements = [target_element(subject, variant) for subject, variant in variants.items()]
    return State(
        revision=5,
        flags={"flag": FLAG},
        segments={"segment": SEGMENT},
        subjects={"ann": ANN, "bob": BOB, "cy": CY},
        sets={TARGETS: SetState(hash=EMPTY.changed(added=elements), variants=variants)},
    )


def targets(*user_ids: str, variant: str = ON, removes_others: bool = False) -> WantedUsers:
    return WantedUsers(
        field="targets[0]", key="flag", user_ids=user_ids, variant=variant, removes_others=removes_others
    )


def step_of(*lists: WantedUsers, before: dict[UUID, str]) -> SetStep:
    (step,) = plan(Configuration(targets=lists), state(before))
    assert isinstance(step, SetStep)
    return step


def test_a_new_person_gets_one_subject_id_in_the_first_step() -> None:
    wanted = Configuration(
        targets=[targets("dan")],
        users=[WantedUser(field="users[0]", profile=UserProfile(user_id="dan", attributes={"plan": "pro"}))],
    )

    met, stored = plan(wanted, state())

    assert isinstance(met, SetStep)
    assert isinstance(stored, UserStep)
    assert ([person.subject_id for person in met.new], stored.new) == ([stored.subject_id], [])
    assert (stored.names, stored.evidence_hash) == (("plan",), None)


def test_what_is_as_it_should_be_needs_no_step() -> None:
    wanted = Configuration(
        flags=[WantedFlag(field="flags[0]", config=FLAG.config, etag=FLAG.etag)],
        segments=[WantedSegment(field="segments[0]", config=SEGMENT.config)],
        targets=[targets("ann")],
    )

    assert plan(wanted, state({ANN: ON, BOB: OFF})) == ()


def test_steps_come_in_an_order_in_which_each_can_be_made() -> None:
    new = FlagConfig(key="new", segment_targets=(SegmentTarget(segment_key="made", variant=ON),))
    wanted = Configuration(
        flags=[WantedFlag(field="flags[0]", config=new)],
        segments=[WantedSegment(field="segments[0]", config=SegmentConfig(key="made"))],
        members=[WantedUsers(field="members[0]", key="made", user_ids=("ann",))],
        flag_deletions=[Deletion(field="flag_deletions[0]", key="flag")],
        segment_deletions=[Deletion(field="segment_deletions[0]", key="segment")],
    )

    assert [type(step) for step in plan(wanted, state())] == [SegmentStep, SetStep, FlagStep, FlagStep, SegmentStep]


def test_users_are_added_moved_and_removed_and_the_hash_follows() -> None:
    step = step_of(targets("ann", "bob", removes_others=True), before={BOB: OFF, CY: ON})

    assert (dict(step.added), dict(step.moved), step.removed) == ({ON: [ANN]}, {ON: [BOB]}, [CY])
    assert step.counts() == {"added": 1, "moved": 1, "removed": 1}
    assert step.after == EMPTY.changed(added=[target_element(ANN, ON), target_element(BOB, ON)])
    assert step.evidence_hash is None


def test_only_users_with_the_same_value_are_others() -> None:
    step = step_of(targets(removes_others=True), before={ANN: ON, BOB: OFF})

    assert step.removed == [ANN]


def test_a_user_without_a_subject_gets_one_in_the_first_step_that_names_it() -> None:
    members = WantedUsers(field="members[0]", key="segment", user_ids=("new",))

    first, second = plan(Configuration(members=[members], targets=[targets("new")]), state())

    assert isinstance(first, SetStep)
    assert isinstance(second, SetStep)
    assert ([one.user_id for one in first.new], second.new) == (["new"], [])
    assert first.subjects == second.subjects == (first.new[0].subject_id,)
    assert (first.evidence_hash is None, second.evidence_hash is None) == (False, True)


REFUSED: dict[str, tuple[Configuration, type[GatekeeperError], str]] = {
    "another etag": (
        Configuration(flags=[WantedFlag(field="flags[0]", config=FLAG.config, etag="x")]),
        Changed,
        "flags[0]",
    ),
    "an etag of nothing": (
        Configuration(flags=[WantedFlag(field="flags[0]", config=FlagConfig(key="new"), etag="x")]),
        NotFound,
        "flags[0]",
    ),
    "a deleted segment": (
        Configuration(
            flags=[
                WantedFlag(
                    field="flags[0]",
                    config=FlagConfig(key="a", segment_targets=(SegmentTarget(segment_key="segment", variant=ON),)),
                )
            ],
            segment_deletions=[Deletion(field="segment_deletions[0]", key="segment")],
        ),
        NotFound,
        "flags[0].segment_targets[0].segment_key",
    ),
    "targets of a deleted flag": (
        Configuration(targets=[targets("ann")], flag_deletions=[Deletion(field="flag_deletions[0]", key="flag")]),
        NotFound,
        "targets[0]",
    ),
    "a new user who cannot be seen": (
        Configuration(targets=[targets("ann", "b\u200b")]),
        InvalidArgument,
        "targets[0].user_ids[1]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_its_field(name: str) -> None:
    wanted, kind, field = REFUSED[name]

    with pytest.raises(kind) as raised:
        plan(wanted, state())

    assert raised.value.metadata["field"] == field


def test_more_changes_than_may_be_are_refused() -> None:
    flags = [WantedFlag(field="", config=FlagConfig(key=f"new-{number}")) for number in range(MAX_CHANGES + 1)]

    with pytest.raises(ResourceExhausted):
        plan(Configuration(flags=flags), state())
    assert len(plan(Configuration(flags=flags[1:]), state())) == MAX_CHANGES


def test_fields_that_differ_are_named() -> None:
    assert changed_fields(FLAG.config, FlagConfig(key="flag", owner="web", enabled=True)) == ("enabled", "owner")
    assert changed_fields(None, FlagConfig(key="flag", owner="web")) == ("owner",)
