"""The segment: valid by construction, who its conditions let in, the same after a trip through its document."""

import json

import pytest
import rfc8785

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.etag import etag
from gatekeeper_grpc.domain.segment import (
    Match,
    SegmentConfig,
    segment_document,
    segment_from_document,
    violations_under,
)
from tests.support.segments import segment

IS_PRO = Condition(attribute="plan", operator=Operator.EQUALS, values=("pro",))
IS_ADULT = Condition(attribute="age", operator=Operator.GREATER_OR_EQUAL, values=(18,))
NOT_IN_TEST = Condition(attribute="/org/test", operator=Operator.EXISTS, negate=True)


@pytest.mark.parametrize(
    ("match", "attributes", "is_in"),
    [
        pytest.param(Match.ALL, {"plan": "pro", "age": 18.0}, True, id="ALL, both met"),
        pytest.param(Match.ALL, {"plan": "pro", "age": 17.0}, False, id="ALL, the second missed"),
        pytest.param(Match.ALL, {"age": 18.0}, False, id="ALL, the first missed"),
        pytest.param(Match.ALL, {}, False, id="ALL, none met"),
        pytest.param(Match.ANY, {"plan": "pro", "age": 18.0}, True, id="ANY, both met"),
        pytest.param(Match.ANY, {"plan": "pro"}, True, id="ANY, the first met"),
        pytest.param(Match.ANY, {"age": 18.0}, True, id="ANY, the second met"),
        pytest.param(Match.ANY, {}, False, id="ANY, none met"),
    ],
)
def test_conditions_combine_by_match(match: Match, attributes: dict[str, JsonValue], is_in: bool) -> None:
    assert segment("adults", IS_PRO, IS_ADULT, match=match).conditions_match(attributes) is is_in


@pytest.mark.parametrize("match", Match)
def test_segment_without_conditions_matches_nobody(match: Match) -> None:
    assert not segment("adults", match=match).conditions_match({"plan": "pro"})


def test_a_negated_condition_can_bring_a_user_without_attributes_in() -> None:
    assert segment("adults", NOT_IN_TEST).conditions_match({})


def test_attribute_names_are_the_top_level_ones_unescaped() -> None:
    escaped = Condition(attribute="/a~1b/0", operator=Operator.EXISTS)
    assert segment("adults", IS_PRO, IS_PRO, NOT_IN_TEST, escaped).attribute_names() == {"plan", "org", "a/b"}


def test_scanned_values_are_those_of_contains_starts_with_and_ends_with() -> None:
    scanning = (Operator.CONTAINS, Operator.STARTS_WITH, Operator.ENDS_WITH)
    conditions = [
        Condition(attribute="email", operator=operator, values=("a", "b")) for operator in (*scanning, Operator.IN)
    ]
    assert segment("adults", *conditions, IS_PRO).config.scanned_value_count() == 6


def test_64_conditions_and_1000_values_are_accepted() -> None:
    ten = Condition(attribute="a", operator=Operator.IN, values=tuple("abcdefghij"))
    many = Condition(attribute="a", operator=Operator.IN, values=tuple(f"v{number}" for number in range(370)))
    assert len(segment("adults", *[ten] * 63, many).config.conditions) == 64


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"key": "a key"}, "segment.key", id="key"),
        pytest.param({"description": "a" * 1_025}, "segment.description", id="description"),
        pytest.param({"conditions": (IS_PRO,) * 65}, "segment.conditions", id="65 conditions"),
        pytest.param(
            {
                "conditions": (
                    IS_PRO,
                    Condition(
                        attribute="a", operator=Operator.IN, values=tuple(f"v{number}" for number in range(1_000))
                    ),
                )
            },
            "segment.conditions",
            id="1,001 values",
        ),
    ],
)
def test_segment_beyond_a_limit_is_refused_by_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        SegmentConfig(**{"key": "adults", **fields})  # type: ignore[arg-type]
    assert [violation.field for violation in refused.value.violations] == [field]


def test_violations_of_a_condition_are_named_from_the_requests_root() -> None:
    with pytest.raises(InvalidArgument) as refused, violations_under("segment.conditions[3]"):
        Condition(attribute="a", operator=Operator.IN, values=("a", "b", None))
    assert [violation.field for violation in refused.value.violations] == ["segment.conditions[3].values[2]"]


def test_an_etag_names_kind_identity_and_revision() -> None:
    assert segment("adults", segment_id=7, revision=9).etag == etag("segment", 7, 9) != etag("flag", 7, 9)


# What a condition may hold, at the edges of what JSON, jsonb and RFC 8785 take.
VALUES: list[JsonValue] = [2.0**53 - 1, 2.0**53, -(2.0**53), 1e300, 5e-324, -0.0, 0.1, True, "", "Zoë 🎉", "%s {} '"]
VALUES += [[], [1, [True, ["a"]]], {"a": {"b": [None]}}, {}]


def test_a_document_leads_back_to_the_segment_whatever_its_conditions_hold() -> None:
    before = segment(
        "edges", Condition(attribute="/a~1b", operator=Operator.IN, values=tuple(VALUES), negate=True), match=Match.ANY
    )

    after = segment_from_document(json.loads(rfc8785.dumps(segment_document(before))))

    assert (after, segment_document(after)) == (before, segment_document(before))
