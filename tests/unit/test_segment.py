import pytest

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.segment import Match, Segment, violations_under

IS_PRO = Condition(attribute="plan", operator=Operator.EQUALS, values=("pro",))
IS_ADULT = Condition(attribute="age", operator=Operator.GREATER_OR_EQUAL, values=(18,))
NOT_IN_TEST = Condition(attribute="/org/test", operator=Operator.EXISTS, negate=True)


def segment(*conditions: Condition, match: Match = Match.ALL, key: str = "adults", description: str = "") -> Segment:
    return Segment(segment_id=1, key=key, description=description, match=match, conditions=conditions)


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
    assert segment(IS_PRO, IS_ADULT, match=match).conditions_match(attributes) is is_in


@pytest.mark.parametrize("match", Match)
def test_segment_without_conditions_matches_nobody(match: Match) -> None:
    assert not segment(match=match).conditions_match({"plan": "pro"})


def test_a_negated_condition_can_bring_a_user_without_attributes_in() -> None:
    assert segment(NOT_IN_TEST).conditions_match({})


def test_attribute_names_are_the_top_level_ones_unescaped() -> None:
    escaped = Condition(attribute="/a~1b/0", operator=Operator.EXISTS)
    assert segment(IS_PRO, IS_PRO, NOT_IN_TEST, escaped).attribute_names() == {"plan", "org", "a/b"}


def test_scanned_values_are_those_of_contains_starts_with_and_ends_with() -> None:
    scanning = (Operator.CONTAINS, Operator.STARTS_WITH, Operator.ENDS_WITH)
    conditions = [
        Condition(attribute="email", operator=operator, values=("a", "b")) for operator in (*scanning, Operator.IN)
    ]
    assert segment(*conditions, IS_PRO).scanned_value_count() == 6


def test_64_conditions_and_1000_values_are_accepted() -> None:
    ten = Condition(attribute="a", operator=Operator.IN, values=tuple("abcdefghij"))
    many = Condition(attribute="a", operator=Operator.IN, values=tuple(f"v{number}" for number in range(370)))
    assert len(segment(*[ten] * 63, many).conditions) == 64


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
        Segment(**{"segment_id": 1, "key": "adults", **fields})  # type: ignore[arg-type]
    assert [violation.field for violation in refused.value.violations] == [field]


def test_violations_of_a_condition_are_named_from_the_requests_root() -> None:
    with pytest.raises(InvalidArgument) as refused, violations_under("segment.conditions[3]"):
        Condition(attribute="a", operator=Operator.IN, values=("a", "b", None))
    assert [violation.field for violation in refused.value.violations] == ["segment.conditions[3].values[2]"]
