"""Segments on the wire: what is bad about one is refused by the path of its field."""

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from gatekeeper_client.v1.admin_service_pb2 import CreateSegmentRequest, UpdateSegmentRequest
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EQUALS, Condition, ConditionOperator, Segment
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.wire.segments import segment_config_from_proto, segment_update_from_proto

pytestmark = pytest.mark.promise("D6")


def value(of: Any) -> Value:
    return ParseDict(of, Value())


def condition(operator: str, *values: Any, attribute: str = "a") -> Condition:
    number = ConditionOperator.Value(f"CONDITION_OPERATOR_{operator}")
    return Condition(attribute=attribute, operator=number, values=map(value, values))


LONG = "x" * 257
BAD: dict[str, tuple[Segment, str]] = {
    "key": (Segment(key="a key"), "segment.key"),
    "no key": (Segment(), "segment.key"),
    "long description": (Segment(description="x" * 1_025), "segment.description"),
    "NUL in the description": (Segment(description="\0"), "segment.description"),
    "unknown match": (Segment(match=9), "segment.match"),  # type: ignore[arg-type]
    "no operator": (Segment(conditions=[Condition(attribute="a")]), "segment.conditions[0].operator"),
    "unknown operator": (
        Segment(conditions=[Condition(attribute="a", operator=99)]),  # type: ignore[arg-type]
        "segment.conditions[0].operator",
    ),
    "no attribute": (Segment(conditions=[condition("EXISTS", attribute="")]), "segment.conditions[0].attribute"),
    "long attribute": (Segment(conditions=[condition("EXISTS", attribute=LONG)]), "segment.conditions[0].attribute"),
    "bad pointer": (Segment(conditions=[condition("EXISTS", attribute="/a~2")]), "segment.conditions[0].attribute"),
    "NUL in the attribute": (
        Segment(conditions=[condition("EXISTS", attribute="a\0")]),
        "segment.conditions[0].attribute",
    ),
    "value for EXISTS": (Segment(conditions=[condition("EXISTS", 1)]), "segment.conditions[0].values"),
    "two values for EQUALS": (Segment(conditions=[condition("EQUALS", 1, 2)]), "segment.conditions[0].values"),
    "no value for IN": (
        Segment(conditions=[condition("EXISTS"), condition("IN")]),
        "segment.conditions[1].values",
    ),
    "1,001 values": (Segment(conditions=[condition("IN", *range(1_001))]), "segment.conditions[0].values"),
    "1,001 values in all": (
        Segment(conditions=[condition("IN", *range(1_000)), condition("EQUALS", 1)]),
        "segment.conditions",
    ),
    "65 conditions": (Segment(conditions=[condition("EXISTS")] * 65), "segment.conditions"),
    "null": (Segment(conditions=[condition("IN", 1, None)]), "segment.conditions[0].values[1]"),
    "a value that is not set": (
        Segment(conditions=[Condition(attribute="a", operator=CONDITION_OPERATOR_EQUALS, values=[Value()])]),
        "segment.conditions[0].values[0]",
    ),
    "long value": (Segment(conditions=[condition("IN", 1, 2, LONG)]), "segment.conditions[0].values[2]"),
    "NUL in a value": (Segment(conditions=[condition("IN", ["\0"])]), "segment.conditions[0].values[0]"),
    "NaN": (
        Segment(
            conditions=[
                Condition(attribute="a", operator=CONDITION_OPERATOR_EQUALS, values=[Value(number_value=float("nan"))])
            ]
        ),
        "segment.conditions[0].values[0]",
    ),
    "infinity inside": (
        Segment(conditions=[Condition(attribute="a", operator=CONDITION_OPERATOR_EQUALS, values=[value({"b": 1})])]),
        "segment.conditions[0].values[0]",
    ),
    "six levels": (Segment(conditions=[condition("IN", [[[[[[1]]]]]])]), "segment.conditions[0].values[0]"),
    "text for GREATER_THAN": (
        Segment(conditions=[condition("EXISTS")] * 3 + [condition("GREATER_THAN", "5")]),
        "segment.conditions[3].values[0]",
    ),
    "number for STARTS_WITH": (
        Segment(conditions=[condition("STARTS_WITH", "a", 5)]),
        "segment.conditions[0].values[1]",
    ),
    "no time": (Segment(conditions=[condition("BEFORE", "2026-01-01")]), "segment.conditions[0].values[0]"),
    "no version": (Segment(conditions=[condition("SEMVER_LESS", "1.0")]), "segment.conditions[0].values[0]"),
}
BAD["infinity inside"][0].conditions[0].values[0].struct_value.fields["b"].number_value = float("inf")


def with_key(segment: Segment, field: str) -> Segment:
    """Return the segment under a good key, unless its key is what is bad about it."""
    sent = Segment(key="adults")
    sent.MergeFrom(segment)
    if "key" in field:
        sent.key = segment.key
    return sent


@pytest.mark.parametrize(("segment", "field"), BAD.values(), ids=BAD.keys())
def test_a_bad_segment_is_refused_by_the_path_of_its_field(segment: Segment, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        segment_config_from_proto(CreateSegmentRequest(segment=with_key(segment, field)))

    assert [violation.field for violation in refused.value.violations] == [field]


# A number of values over all conditions, and a description, are checked where the update meets the stored segment.
IN_A_REQUEST = {
    name: bad
    for name, bad in BAD.items()
    if "key" in bad[1] or "match" in bad[1] or "[" in bad[1] or name == "65 conditions"
}


@pytest.mark.parametrize(("segment", "field"), IN_A_REQUEST.values(), ids=IN_A_REQUEST.keys())
def test_a_bad_update_is_refused_by_the_path_of_its_field(segment: Segment, field: str) -> None:
    mask = FieldMask(paths=["description", "match", "conditions"])

    with pytest.raises(InvalidArgument) as refused:
        segment_update_from_proto(UpdateSegmentRequest(segment=with_key(segment, field), update_mask=mask))

    assert [violation.field for violation in refused.value.violations] == [field]
