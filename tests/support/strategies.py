"""Hypothesis strategies for the contents of a database, and the snapshots of them."""

from typing import Any

from hypothesis import strategies as st

from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail
from gatekeeper_grpc.domain.flag import OFF, ON, Flag, SegmentTarget
from gatekeeper_grpc.domain.segment import Segment
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from tests.support.flags import flag
from tests.support.segments import segment

USERS = ["alice", "bob", "carol"]


KEYS = ["a", "b", "c", "d"]


Entries = dict[tuple[str, int], int]


def index(entries: Entries) -> UserIndex:
    return UserIndex().with_entries(UserEntry(user, owner, tag) for (user, owner), tag in entries.items())


def answers(snapshot: Snapshot) -> dict[str, list[EvaluationDetail]]:
    """What every user gets."""
    plans = snapshot.select([]).plans
    return {user: snapshot.evaluate(plans, EvaluationContext(user_id=user)) for user in USERS}


def mail_segment(key: str, segment_id: int, email_ending: str) -> Segment:
    condition = Condition(attribute="email", operator=Operator.ENDS_WITH, values=(email_ending,))
    return segment(key, condition, segment_id=segment_id)


# A flag's id names its key and its life: "a" lives as 10, deleted and created again as 11.
lives = st.integers(0, 1)


segment_keys = st.sampled_from(["s1", "s2"])


@st.composite
def flags_by_key(draw: st.DrawFn) -> dict[str, Flag]:
    fields = st.fixed_dictionaries(
        {
            "enabled": st.booleans(),
            "default_variant": st.sampled_from([OFF, ON]),
            "rollout_percentage": st.sampled_from([0, 50, 100]),
            "segment_targets": st.sampled_from([(), (SegmentTarget(segment_key="s1", variant=ON),)]),
        }
    )
    drawn = draw(st.dictionaries(st.sampled_from(KEYS), st.tuples(lives, fields)))
    return {key: _living(key, life, config) for key, (life, config) in drawn.items()}


def _living(key: str, life: int, config: dict[str, Any]) -> Flag:
    return flag(key, flag_id=KEYS.index(key) * 10 + life, **config)


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    """All of a database: flags, the two segments, targets of living flags, members."""
    flags = draw(flags_by_key())
    owners = st.sampled_from([stored.flag_id for stored in flags.values()] or [0])
    targets = draw(st.dictionaries(st.tuples(st.sampled_from(USERS), owners), st.integers(0, 1)))
    return {
        "flags": flags,
        "segments": {
            key: mail_segment(key, number, draw(st.sampled_from("xy"))) for number, key in enumerate(["s1", "s2"])
        },
        "targets": targets if flags else {},
        "members": draw(st.dictionaries(st.tuples(st.sampled_from(USERS), lives), st.just(0))),
    }


def build(state: dict[str, Any], *, revision: int) -> Snapshot:
    return Snapshot.build(
        revision=revision,
        flags=state["flags"].values(),
        segments=state["segments"].values(),
        targets=index(state["targets"]),
        members=index(state["members"]),
    )
