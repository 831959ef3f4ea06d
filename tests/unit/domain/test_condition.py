import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.condition import Condition, Operator, condition_document, condition_from_document
from gatekeeper_grpc.domain.errors import InvalidArgument

MAX_IN = [f"user-{number}" for number in range(1_000)]


def condition(operator: Operator, *values: JsonValue, attribute: str = "attribute", negate: bool = False) -> Condition:
    return Condition(attribute=attribute, operator=operator, values=values, negate=negate)


MATCHING = [
    pytest.param(Operator.EQUALS, ["pro"], "pro", id="EQUALS text"),
    pytest.param(Operator.EQUALS, [5], 5.0, id="EQUALS a number in either notation"),
    pytest.param(Operator.EQUALS, [False], False, id="EQUALS false"),
    pytest.param(Operator.EQUALS, [[1, {"a": None}]], [1.0, {"a": None}], id="EQUALS deeply"),
    pytest.param(Operator.EQUALS, [1e300], 10**300, id="EQUALS a double that jsonb returned as an integer"),
    pytest.param(Operator.IN, ["a", 2, True], 2.0, id="IN a mixed list"),
    pytest.param(Operator.IN, MAX_IN, "user-999", id="IN the last of 1,000"),
    pytest.param(Operator.IN, ["a", [1]], [1.0], id="IN with a list among the values"),
    pytest.param(Operator.CONTAINS, ["b", "x"], "abc", id="CONTAINS any substring"),
    pytest.param(Operator.CONTAINS, [""], "", id="CONTAINS the empty text, which is in every text"),
    pytest.param(Operator.CONTAINS, ["b"], ["a", "b"], id="CONTAINS an element"),
    pytest.param(Operator.CONTAINS, [1], [True, 1.0], id="CONTAINS a number"),
    pytest.param(Operator.CONTAINS, [{"a": 1}], ["x", {"a": 1.0}], id="CONTAINS an object"),
    pytest.param(Operator.STARTS_WITH, ["x", "ann@"], "ann@example.com", id="STARTS_WITH any"),
    pytest.param(Operator.ENDS_WITH, ["x", ".com"], "ann@example.com", id="ENDS_WITH any"),
    pytest.param(Operator.GREATER_THAN, [18], 18.5, id="GREATER_THAN"),
    pytest.param(Operator.GREATER_OR_EQUAL, [18], 18, id="GREATER_OR_EQUAL its bound"),
    pytest.param(Operator.LESS_THAN, [0], -1e300, id="LESS_THAN"),
    pytest.param(Operator.LESS_OR_EQUAL, [0.5], 0.5, id="LESS_OR_EQUAL its bound"),
    pytest.param(Operator.EXISTS, [], False, id="EXISTS with false"),
    pytest.param(Operator.EXISTS, [], "", id="EXISTS with empty text"),
    pytest.param(Operator.BEFORE, ["2026-01-01T00:00:00Z"], "2026-01-01T00:30:00+01:00", id="BEFORE as instants"),
    pytest.param(Operator.AFTER, ["2026-01-01T00:00:00Z"], "2026-01-01T00:00:00.000000001Z", id="AFTER by 1 ns"),
    pytest.param(Operator.SEMVER_EQUAL, ["1.2.3"], "1.2.3+build", id="SEMVER_EQUAL but for the build"),
    pytest.param(Operator.SEMVER_GREATER, ["1.9.0"], "1.10.0", id="SEMVER_GREATER"),
    pytest.param(Operator.SEMVER_GREATER_OR_EQUAL, ["1.9.0"], "1.9.0", id="SEMVER_GREATER_OR_EQUAL its bound"),
    pytest.param(Operator.SEMVER_LESS, ["2.0.0"], "2.0.0-rc.1", id="SEMVER_LESS a release than its candidate"),
    pytest.param(Operator.SEMVER_LESS_OR_EQUAL, ["2.0.0"], "2.0.0", id="SEMVER_LESS_OR_EQUAL its bound"),
]

NOT_MATCHING = [
    pytest.param(Operator.EQUALS, ["pro"], "Pro", id="EQUALS minds the case"),
    pytest.param(Operator.EQUALS, [1], True, id="EQUALS: a boolean is not a number"),
    pytest.param(Operator.EQUALS, [True], 1.0, id="EQUALS: a number is not a boolean"),
    pytest.param(Operator.EQUALS, ["5"], 5.0, id="EQUALS: a number is not text"),
    pytest.param(Operator.EQUALS, [[1]], [True], id="EQUALS: not inside a list either"),
    pytest.param(Operator.EQUALS, ["a"], ["a"], id="EQUALS: a list is not its element"),
    pytest.param(Operator.EQUALS, ["a"], None, id="EQUALS: null counts as missing"),
    pytest.param(Operator.IN, [0, 1], True, id="IN: a boolean is not a number"),
    pytest.param(Operator.IN, [[0, 1]], [False, True], id="IN: not inside a list either"),
    pytest.param(Operator.CONTAINS, [1], [True], id="CONTAINS: a boolean is not a number"),
    pytest.param(Operator.CONTAINS, ["1"], [1.0], id="CONTAINS: a number is not text"),
    pytest.param(Operator.CONTAINS, ["a"], ["abc"], id="CONTAINS: an element is tested whole"),
    pytest.param(Operator.CONTAINS, ["a"], [["a"]], id="CONTAINS: not inside the elements"),
    pytest.param(Operator.CONTAINS, ["a"], {"a": "a"}, id="CONTAINS: objects contain nothing"),
    pytest.param(Operator.CONTAINS, [1], "1", id="CONTAINS: text has no numbers in it"),
    pytest.param(Operator.STARTS_WITH, ["a"], ["a"], id="STARTS_WITH a list"),
    pytest.param(Operator.ENDS_WITH, ["5"], 5.0, id="ENDS_WITH a number"),
    pytest.param(Operator.GREATER_THAN, [18], 18, id="GREATER_THAN its bound"),
    pytest.param(Operator.GREATER_THAN, [0], True, id="GREATER_THAN: a boolean is not a number"),
    pytest.param(Operator.GREATER_THAN, [0], "5", id="GREATER_THAN: text is not a number"),
    pytest.param(Operator.GREATER_THAN, [0], float("inf"), id="GREATER_THAN: infinity is not finite"),
    pytest.param(Operator.GREATER_THAN, [0], 10**400, id="GREATER_THAN: an integer beyond the doubles is not finite"),
    pytest.param(Operator.LESS_THAN, [0], float("nan"), id="LESS_THAN: NaN is not finite"),
    pytest.param(Operator.EXISTS, [], None, id="EXISTS: null counts as missing"),
    pytest.param(Operator.BEFORE, ["2026-01-01T00:00:00Z"], "2026-01-01T00:00:00Z", id="BEFORE itself"),
    pytest.param(Operator.BEFORE, ["2026-01-01T00:00:00Z"], "2025-01-01", id="BEFORE: a date is not a time"),
    pytest.param(Operator.AFTER, ["2026-01-01T00:00:00Z"], 1.8e9, id="AFTER: a number is not a time"),
    pytest.param(Operator.SEMVER_GREATER, ["1.0.0"], "v2.0.0", id="SEMVER_GREATER: a tag is not a version"),
    pytest.param(Operator.SEMVER_GREATER, ["1.0.0"], "9" * 16_000, id="SEMVER_GREATER: 16 KiB of digits"),
    pytest.param(Operator.SEMVER_LESS, ["3.0.0"], 2.0, id="SEMVER_LESS: a number is not a version"),
]


@pytest.mark.parametrize(("operator", "values", "value"), MATCHING)
def test_an_attribute_that_satisfies_the_operator_matches(
    operator: Operator, values: list[JsonValue], value: JsonValue
) -> None:
    assert condition(operator, *values).matches({"attribute": value})


@pytest.mark.parametrize(("operator", "values", "value"), NOT_MATCHING)
def test_an_attribute_that_does_not_satisfy_the_operator_does_not_match(
    operator: Operator, values: list[JsonValue], value: JsonValue
) -> None:
    assert not condition(operator, *values).matches({"attribute": value})


@pytest.mark.parametrize(
    ("attribute", "matches"),
    [
        pytest.param("/org/tier", True, id="inside an object"),
        pytest.param("/teams/1/name", True, id="inside an element of a list"),
        pytest.param("/a~1b", True, id="an escaped name"),
        pytest.param("a/b", True, id="a name with a slash further on"),
        pytest.param("/org/tier/deeper", False, id="inside text there is nothing"),
        pytest.param("/teams/2/name", False, id="past the end of a list"),
        pytest.param("/absent/tier", False, id="inside nothing there is nothing"),
        pytest.param("org/tier", False, id="without a leading slash it is a name"),
    ],
)
def test_json_pointer_leads_to_the_value(attribute: str, matches: bool) -> None:
    attributes: dict[str, JsonValue] = {
        "org": {"tier": "gold"},
        "teams": [{"name": "red"}, {"name": "gold"}],
        "a/b": "gold",
    }
    assert condition(Operator.EQUALS, "gold", attribute=attribute).matches(attributes) is matches


VALUES_OF: dict[Operator, st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        (Operator.GREATER_THAN, Operator.GREATER_OR_EQUAL, Operator.LESS_THAN, Operator.LESS_OR_EQUAL),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    **dict.fromkeys((Operator.BEFORE, Operator.AFTER), st.datetimes().map(lambda time: f"{time.isoformat()}Z")),
    **dict.fromkeys(
        [operator for operator in Operator if operator.name.startswith("SEMVER")],
        st.from_regex(r"\A[1-9][0-9]{0,3}\.0\.[1-9](-[a-z]{1,3}(\.[1-9])?)?\Z"),
    ),
    **dict.fromkeys((Operator.STARTS_WITH, Operator.ENDS_WITH), st.text(max_size=3)),
}
scalars = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["1.0.0", "2026-01-01T00:00:00Z"])
)
json_values = st.recursive(
    st.none() | scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab") | st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    operator = draw(st.sampled_from(Operator))
    most = 3 if operator in {Operator.IN, Operator.CONTAINS, Operator.STARTS_WITH, Operator.ENDS_WITH} else 1
    values = st.lists(VALUES_OF.get(operator, json_values), min_size=1, max_size=most)
    try:
        return Condition(
            attribute=draw(st.sampled_from(["a", "b", "/a/0", "/a/b", "/b/a/1", "/"])),
            operator=operator,
            values=() if operator is Operator.EXISTS else tuple(draw(values)),
            negate=draw(st.booleans()),
        )
    except InvalidArgument:  # NaN, null, NUL and other values that no condition may have.
        assume(False)
        raise


@given(conditions(), st.dictionaries(st.sampled_from(["a", "b", ""]), json_values))
def test_negate_is_the_complement_for_any_attributes_and_nothing_raises(
    any_condition: Condition, attributes: dict[str, JsonValue]
) -> None:
    opposite = Condition(
        attribute=any_condition.attribute,
        operator=any_condition.operator,
        values=any_condition.values,
        negate=not any_condition.negate,
    )
    assert opposite.matches(attributes) is not any_condition.matches(attributes)


@given(conditions())
def test_document_gives_an_equal_condition_back_after_json(any_condition: Condition) -> None:
    document = condition_document(any_condition)
    restored = condition_from_document(json.loads(json.dumps(document)))
    assert restored == any_condition
    assert json.dumps(condition_document(restored)) == json.dumps(document)


def test_condition_survives_the_integer_that_jsonb_makes_of_a_large_double() -> None:
    document = condition_document(condition(Operator.EQUALS, 1e300))
    from_jsonb = condition_from_document({**document, "values": [10**300]})
    assert from_jsonb == condition(Operator.EQUALS, 1e300)


def test_document_names_every_field() -> None:
    document = condition_document(condition(Operator.IN, 5.0, "a", attribute="/a/b", negate=True))
    assert document == {"attribute": "/a/b", "operator": "IN", "values": [5, "a"], "negate": True}


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({}, id="empty"),
        pytest.param({"attribute": "a", "operator": "EXISTS", "values": []}, id="without negate"),
        pytest.param({"attribute": "a", "operator": "EXISTS", "values": [], "negate": 0}, id="negate of another type"),
        pytest.param({"attribute": "a", "operator": "MATCHES", "values": [], "negate": False}, id="unknown operator"),
        pytest.param(
            {"attribute": "a", "operator": "EXISTS", "values": [], "negate": False, "ignore_case": True},
            id="a field of a later release",
        ),
    ],
)
def test_document_of_another_shape_is_refused_rather_than_guessed(document: dict[str, JsonValue]) -> None:
    with pytest.raises(ValueError, match=r"condition document|not a valid Operator"):
        condition_from_document(document)


def test_conditions_are_equal_if_they_test_the_same() -> None:
    assert {condition(Operator.EQUALS, 1), condition(Operator.EQUALS, 1.0)} == {condition(Operator.EQUALS, 1)}
    assert condition(Operator.EQUALS, 1) != condition(Operator.EQUALS, True)


def test_condition_does_not_change_with_the_list_it_was_made_of() -> None:
    wanted: list[JsonValue] = ["a"]
    made = condition(Operator.EQUALS, wanted)
    wanted.append("b")
    assert made.values == (["a"],)


@pytest.mark.parametrize(
    ("operator", "values", "field"),
    [
        pytest.param(Operator.EQUALS, [], "values", id="EQUALS nothing"),
        pytest.param(Operator.EQUALS, ["a", "b"], "values", id="EQUALS two"),
        pytest.param(Operator.IN, [], "values", id="IN nothing"),
        pytest.param(Operator.IN, [*MAX_IN, "a"], "values", id="IN 1,001"),
        pytest.param(Operator.EXISTS, [True], "values", id="EXISTS with a value"),
        pytest.param(Operator.BEFORE, ["2026-01-01T00:00:00Z"] * 2, "values", id="BEFORE two times"),
        pytest.param(Operator.IN, ["a", None], "values[1]", id="null"),
        pytest.param(Operator.IN, ["a", "b", float("nan")], "values[2]", id="NaN"),
        pytest.param(Operator.EQUALS, [float("inf")], "values[0]", id="infinity"),
        pytest.param(Operator.EQUALS, ["a\0"], "values[0]", id="NUL"),
        pytest.param(Operator.EQUALS, ["é" * 129], "values[0]", id="258 bytes of text"),
        pytest.param(Operator.EQUALS, [["a" * 253]], "values[0]", id="257 bytes of JSON"),
        pytest.param(Operator.EQUALS, [[[[[[["deep"]]]]]]], "values[0]", id="six levels deep"),
        pytest.param(Operator.STARTS_WITH, ["a", 1], "values[1]", id="STARTS_WITH a number"),
        pytest.param(Operator.GREATER_THAN, ["5"], "values[0]", id="GREATER_THAN text"),
        pytest.param(Operator.LESS_THAN, [True], "values[0]", id="LESS_THAN a boolean"),
        pytest.param(Operator.AFTER, ["2026-01-01"], "values[0]", id="AFTER a date"),
        pytest.param(Operator.SEMVER_EQUAL, ["1.2"], "values[0]", id="SEMVER_EQUAL half a version"),
    ],
)
def test_values_the_operator_cannot_use_are_refused_by_name(
    operator: Operator, values: list[JsonValue], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        condition(operator, *values)
    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("é" * 128, id="256 bytes of text"),
        pytest.param(["a" * 252], id="256 bytes of JSON"),
        pytest.param([[[[["deep"]]]]], id="five levels deep"),
    ],
)
def test_value_at_the_limit_is_accepted(value: JsonValue) -> None:
    assert condition(Operator.EQUALS, value).matches({"attribute": value})


@pytest.mark.parametrize(
    "attribute",
    [
        pytest.param("", id="empty"),
        pytest.param("é" * 129, id="258 bytes"),
        pytest.param("a\0", id="NUL"),
        pytest.param("\ud800", id="half a surrogate pair"),
        pytest.param("/a~2", id="unknown escape"),
        pytest.param("/a~", id="unfinished escape"),
    ],
)
def test_malformed_attribute_is_refused_by_name(attribute: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        condition(Operator.EXISTS, attribute=attribute)
    assert [violation.field for violation in refused.value.violations] == ["attribute"]


@given(
    st.lists(st.text(alphabet="ab", min_size=1, max_size=40), min_size=1, max_size=8),
    st.text(alphabet="ab", max_size=400),
)
def test_long_texts_contain_what_short_ones_do(sought: list[str], text: str) -> None:
    assert condition(Operator.CONTAINS, *sought).matches({"attribute": text}) is any(each in text for each in sought)


def test_the_last_of_1_000_texts_is_found_at_the_end_of_16_kib() -> None:
    texts = [f"needle-{number:04}" for number in range(1_000)]
    text = "x" * (16 * 1024 - len(texts[-1])) + texts[-1]

    assert condition(Operator.CONTAINS, *texts).matches({"attribute": text})
    assert not condition(Operator.CONTAINS, *texts).matches({"attribute": text[:-1]})
