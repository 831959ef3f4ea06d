"""One rollout from real life, over the wire: enterprise customers of two countries on a new enough release get the new
billing, three of them are spared by name, and everybody else is drawn at 25 %.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.evaluation_pb2 import (
    REASON_SPLIT,
    REASON_TARGETING_MATCH,
    EvaluationContext,
    Reason,
)
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import (
    CONDITION_OPERATOR_EQUALS,
    CONDITION_OPERATOR_IN,
    CONDITION_OPERATOR_SEMVER_GREATER_OR_EQUAL,
    SEGMENT_MATCH_ALL,
    Condition,
    Segment,
)
from tests.support.clients import Installation, installed

FLAG = "new-billing"
SEGMENT = "enterprise-dach"
TARGET, SPLIT = REASON_TARGETING_MATCH, REASON_SPLIT


def text(value: str) -> Value:
    return Value(string_value=value)


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    with installed(postgres) as installation:
        conditions = [
            Condition(attribute="plan", operator=CONDITION_OPERATOR_EQUALS, values=[text("enterprise")]),
            Condition(
                attribute="app_version", operator=CONDITION_OPERATOR_SEMVER_GREATER_OR_EQUAL, values=[text("2.10.0")]
            ),
            Condition(attribute="country", operator=CONDITION_OPERATOR_IN, values=[text("DE"), text("AT")]),
        ]
        segment = Segment(key=SEGMENT, match=SEGMENT_MATCH_ALL, conditions=conditions)
        flag = Flag(
            key=FLAG,
            enabled=True,
            rollout_percentage=25,
            segment_targets=[SegmentTarget(segment_key=SEGMENT, value=True)],
        )
        installation.admin.CreateSegment(pb.CreateSegmentRequest(segment=segment))
        installation.admin.CreateFlag(pb.CreateFlagRequest(flag=flag))
        installation.admin.AddTargets(
            pb.AddTargetsRequest(flag_key=FLAG, user_ids=["karl", "lena", "otto"], value=False)
        )
        yield installation


def user(plan: Any = "enterprise", app_version: Any = "2.10.0", country: Any = "DE", **more: Any) -> dict[str, Any]:
    """Attributes that put a user in the segment, but for those given; `...` leaves one out."""
    attributes = {"plan": plan, "app_version": app_version, "country": country, **more}
    return {name: value for name, value in attributes.items() if value is not ...}


# Who asks, with which attributes, and what the answer is. The slot in the draw is given where it decides.
ANSWERS: list[tuple[str, dict[str, Any], bool, Reason.ValueType]] = [
    # In the segment, whatever their slot.
    ("anna", user(), True, TARGET),  # 95
    ("bernd", user(country="AT"), True, TARGET),  # 46
    ("chris", user(app_version="2.10.1"), True, TARGET),  # 23
    ("dora", user(app_version="2.11.0"), True, TARGET),  # 61
    ("emil", user(app_version="3.0.0", country="AT"), True, TARGET),  # 62
    ("frieda", user(app_version="10.0.0"), True, TARGET),  # newer, though "10" sorts before "2"
    ("gustav", user(app_version="2.10.0+build.7"), True, TARGET),  # build metadata does not count
    ("hanna", user(app_version="2.11.0-rc.1"), True, TARGET),  # before 2.11.0, after 2.10.0
    ("vera", user(seats=500, beta=True), True, TARGET),  # other attributes say nothing
    ("Zoë", user(country="AT", name="Zoë 🎉"), True, TARGET),
    # Spared by name, in the segment or not, drawn or not.
    ("karl", user(), False, TARGET),  # 10
    ("karl", user(plan="free"), False, TARGET),
    ("karl", {}, False, TARGET),
    ("lena", user(country="AT"), False, TARGET),  # 50
    ("lena", {}, False, TARGET),
    ("otto", user(app_version="3.0.0"), False, TARGET),  # 43
    # Out of the segment by one attribute: drawn.
    ("anna", user(plan="free"), False, SPLIT),  # 95
    ("anna", user(plan="Enterprise"), False, SPLIT),
    ("anna", user(plan=["enterprise"]), False, SPLIT),  # a list is not its element
    ("anna", user(plan=None), False, SPLIT),
    ("anna", user(plan=...), False, SPLIT),
    ("bernd", user(app_version="2.9.9"), False, SPLIT),  # 46; older, though "9" sorts after "1"
    ("bernd", user(app_version="2.10.0-rc.1"), False, SPLIT),  # a release candidate is before its release
    ("bernd", user(app_version="2.10"), False, SPLIT),  # no version of SemVer
    ("bernd", user(app_version="v2.10.0"), False, SPLIT),
    ("bernd", user(app_version=2.1), False, SPLIT),  # a number is no text
    ("bernd", user(app_version=...), False, SPLIT),
    ("dora", user(country="CH"), False, SPLIT),  # 61
    ("dora", user(country="de"), False, SPLIT),
    ("dora", user(country="DE "), False, SPLIT),
    ("dora", user(country=["DE", "AT"]), False, SPLIT),
    ("dora", user(country=...), False, SPLIT),
    # Out of the segment, and the draw hits.
    ("chris", user(plan="free"), True, SPLIT),  # 23
    ("gustav", user(app_version="1.0.0"), True, SPLIT),  # 22
    ("ida", user(country="FR"), True, SPLIT),  # 21
    ("quirin", {}, True, SPLIT),  # 2
    # The edges of 25 %.
    ("user-61", {}, True, SPLIT),  # 24
    ("user-6", {}, False, SPLIT),  # 25
    ("user-12", {}, True, SPLIT),  # 0
    ("user-19", {}, False, SPLIT),  # 99
]


def context(user_id: str, attributes: dict[str, Any]) -> EvaluationContext:
    return EvaluationContext(user_id=user_id, attributes=ParseDict(attributes, Struct()))


@pytest.mark.parametrize(("user_id", "attributes", "value", "reason"), ANSWERS, ids=str)
def test_each_user_gets_the_expected_answer(
    installation: Installation, user_id: str, attributes: dict[str, Any], value: bool, reason: Reason.ValueType
) -> None:
    request = EvaluateFlagsRequest(context=context(user_id, attributes), flag_keys=[FLAG], include_details=True)

    detail = EvaluationServiceStub(installation.channels[None]).EvaluateFlags(request).details[FLAG]

    by_segment = SEGMENT if (value, reason) == (True, TARGET) else ""
    assert (detail.value, detail.reason, detail.segment_key) == (value, reason, by_segment)


def test_a_bulk_stream_gives_them_all_the_same_answers(installation: Installation) -> None:
    contexts = [context(user_id, attributes) for user_id, attributes, _, _ in ANSWERS]
    request = BulkEvaluateFlagsRequest(contexts=contexts, flag_keys=[FLAG])

    answers = EvaluationServiceStub(installation.channels[None]).BulkEvaluateFlags(iter([request]))

    assert len(ANSWERS) == 40
    assert [list(result.evaluation.values) for answer in answers for result in answer.batch.results] == [
        [value] for _, _, value, _ in ANSWERS
    ]
