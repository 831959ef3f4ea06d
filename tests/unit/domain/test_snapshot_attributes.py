"""Stored attributes in a snapshot: what conditions see, when they are looked up, what a delta does to them."""

import json
from collections.abc import Mapping

import pytest

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.attribute_index import AttributeEntry, AttributeIndex
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.flag import ON, SegmentTarget
from gatekeeper_grpc.domain.segment import Segment
from gatekeeper_grpc.domain.snapshot import Snapshot, SnapshotDelta
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from tests.support.flags import flag
from tests.support.segments import segment

AIMED = flag("aimed", flag_id=1, enabled=True, segment_targets=(SegmentTarget(segment_key="gold", variant=ON),))
PLAIN = flag("plain", flag_id=2, enabled=True, rollout_percentage=50)


def wanting(name: str) -> Segment:
    """Build the segment of users for whom an attribute is "gold"."""
    return segment("gold", Condition(attribute=name, operator=Operator.EQUALS, values=("gold",)))


def stored(values: Mapping[str, JsonValue], *names: str) -> AttributeIndex:
    entries = [AttributeEntry("alice", name, json.dumps(value)) for name, value in values.items() if value is not None]
    return AttributeIndex.build([*values, *names], entries)


def snapshot(
    attributes: AttributeIndex, *, members: UserIndex | None = None, targets: UserIndex | None = None
) -> Snapshot:
    return Snapshot.build(
        revision=1,
        flags=[AIMED, PLAIN],
        segments=[wanting("plan")],
        attributes=attributes,
        members=members,
        targets=targets,
    )


def answer(snapshot: Snapshot, key: str, user_id: str | None, **sent: JsonValue) -> bool:
    context = EvaluationContext(user_id=user_id, attributes=sent)
    (detail,) = snapshot.evaluate(snapshot.select([key]).plans, context)
    return detail.value


@pytest.mark.parametrize(
    ("user_id", "sent", "value"),
    [
        pytest.param("alice", {}, True, id="stored"),
        pytest.param("alice", {"plan": "free"}, False, id="another one sent"),
        pytest.param("alice", {"plan": None}, False, id="hidden by null"),
        pytest.param("alice", {"age": 3}, True, id="another attribute sent"),
        pytest.param("bob", {}, False, id="nothing stored"),
        pytest.param("bob", {"plan": "gold"}, True, id="nothing stored, sent"),
        pytest.param("Alice", {}, False, id="ids are case-sensitive"),
        pytest.param(None, {}, False, id="anonymous"),
        pytest.param(None, {"plan": "gold"}, True, id="anonymous, sent"),
    ],
)
def test_stored_attributes_stand_behind_those_sent(
    user_id: str | None, sent: dict[str, JsonValue], *, value: bool
) -> None:
    assert answer(snapshot(stored({"plan": "gold"})), "aimed", user_id, **sent) is value


class Unasked(AttributeIndex):
    """Holds something, and must not be asked for it."""

    def __len__(self) -> int:
        return 1

    def find(self, digest: bytes, name: str) -> JsonValue:  # noqa: ARG002 - as the index has it
        raise AssertionError(f"looked {name!r} up for nothing")


MEMBER = UserIndex.build([UserEntry("alice", 1, 0)])
TARGETED = UserIndex.build([UserEntry("alice", 1, 1)])


@pytest.mark.parametrize(
    ("held", "key", "sent"),
    [
        pytest.param(snapshot(Unasked()), "plain", {}, id="the flag has no segment"),
        pytest.param(snapshot(Unasked()), "aimed", {"plan": "gold"}, id="sent"),
        pytest.param(snapshot(Unasked(), members=MEMBER), "aimed", {}, id="a member"),
        pytest.param(snapshot(Unasked(), targets=TARGETED), "aimed", {}, id="targeted"),
    ],
)
def test_stored_attributes_are_not_looked_up_where_nothing_depends_on_them(
    held: Snapshot, key: str, sent: dict[str, JsonValue]
) -> None:
    assert isinstance(answer(held, key, "alice", **sent), bool)  # `Unasked` raises when it is asked.


def test_they_are_looked_up_where_something_does() -> None:
    """The twin of the test before."""
    with pytest.raises(AssertionError, match="plan"):
        answer(snapshot(Unasked()), "aimed", "alice")


def test_a_delta_changes_what_users_have() -> None:
    before = snapshot(stored({"plan": "gold"}))

    after = before.after(SnapshotDelta(revision=2, attributes=[AttributeEntry("alice", "plan", '"free"')]))

    assert [answer(each, "aimed", "alice") for each in (before, after)] == [True, False]


def test_a_delta_adds_newly_named_attributes_and_drops_unnamed_ones() -> None:
    before = snapshot(stored({"plan": "free"}))

    after = before.after(
        SnapshotDelta(revision=2, segments={"gold": wanting("tier")}, named_attributes=stored({"tier": "gold"}))
    )

    assert [answer(each, "aimed", "alice") for each in (before, after)] == [False, True]
    assert (set(before.attributes.names), set(after.attributes.names)) == ({"plan"}, {"tier"})


def test_an_attribute_that_nobody_has_gets_its_first_value_by_a_delta() -> None:
    before = snapshot(stored({}, "plan"))

    after = before.after(SnapshotDelta(revision=2, attributes=[AttributeEntry("alice", "plan", '"gold"')]))

    assert [answer(each, "aimed", "alice") for each in (before, after)] == [False, True]
