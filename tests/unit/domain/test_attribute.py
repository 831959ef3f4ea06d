import json

import pytest

from gatekeeper_grpc.domain.attribute import JsonValue, canonical, identity, member, reference_tokens, size_bytes


def nested(levels: int) -> JsonValue:
    value: JsonValue = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(1, 1.0, id="integer and double"),
        pytest.param(0.0, -0.0, id="zero and minus zero"),
        pytest.param(10**300, 1e300, id="a double that jsonb returned as an integer"),
        pytest.param({"a": 1, "b": [2]}, {"b": [2.0], "a": 1.0}, id="objects whatever the order of their names"),
    ],
)
def test_the_same_json_value_has_one_identity(one: JsonValue, other: JsonValue) -> None:
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(1, True, id="number and boolean"),
        pytest.param(0, False, id="zero and false"),
        pytest.param(1, "1", id="number and text"),
        pytest.param(None, False, id="null and false"),
        pytest.param([1], [True], id="inside lists"),
        pytest.param({"a": 1}, {"a": True}, id="inside objects"),
        pytest.param([1, 2], [2, 1], id="lists in another order"),
        pytest.param([], {}, id="empty list and empty object"),
        pytest.param(["bool", True], True, id="a list that looks like the key of a boolean"),
        pytest.param([["a", 1]], {"a": 1}, id="pairs and object"),
        pytest.param(nested(5), nested(6), id="one level too deep"),
    ],
)
def test_different_json_values_have_different_identities(one: JsonValue, other: JsonValue) -> None:
    assert identity(one) != identity(other)


def test_identity_of_a_very_deep_value_does_not_exhaust_the_stack() -> None:
    assert identity(nested(10_000)) != identity(nested(1))


@pytest.mark.parametrize(
    ("attribute", "tokens"),
    [
        pytest.param("plan", ("plan",), id="top-level name"),
        pytest.param("a/b~c", ("a/b~c",), id="a name without a leading slash is taken as it is"),
        pytest.param("/org/tier", ("org", "tier"), id="pointer"),
        pytest.param("/", ("",), id="pointer to the empty name"),
        pytest.param("/a~1b/c~0d", ("a/b", "c~d"), id="escapes"),
        pytest.param("/~01", ("~1",), id="an escaped tilde before a one"),
        pytest.param("/a//b", ("a", "", "b"), id="an empty name on the way"),
    ],
)
def test_attribute_splits_into_reference_tokens(attribute: str, tokens: tuple[str, ...]) -> None:
    assert reference_tokens(attribute) == tokens


@pytest.mark.parametrize(
    ("value", "token", "found"),
    [
        pytest.param({"tier": "gold"}, "tier", "gold", id="name"),
        pytest.param({"0": "zero"}, "0", "zero", id="a name of digits in an object"),
        pytest.param(["a", "b"], "1", "b", id="index"),
        pytest.param(["a", "b"], "2", None, id="index past the end"),
        pytest.param(["a", "b"], "01", None, id="index with a leading zero"),
        pytest.param(["a", "b"], "-1", None, id="negative index"),
        pytest.param(["a", "b"], "-", None, id="the element after the last"),
        pytest.param(["a", "b"], "\u0661", None, id="index in other than ASCII digits"),
        pytest.param(["a", "b"], "9" * 255, None, id="huge index"),
        pytest.param("text", "0", None, id="inside text there is nothing"),
        pytest.param(None, "a", None, id="inside nothing there is nothing"),
    ],
)
def test_member_finds_what_a_token_names(value: JsonValue, token: str, found: JsonValue) -> None:
    assert member(value, token) == found


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(5.0, "5", id="whole number"),
        pytest.param(-0.0, "0", id="minus zero"),
        pytest.param(0.1, "0.1", id="fraction"),
        pytest.param(2.0**53 - 1, "9007199254740991", id="last exact integer"),
        pytest.param(2.0**53, "9007199254740992.0", id="first that RFC 8785 refuses as an integer"),
        pytest.param(10**300, "1e+300", id="integer beyond"),
        pytest.param({"a": [1.0, True, None]}, '{"a": [1, true, null]}', id="inside"),
    ],
)
def test_canonical_writes_a_number_one_way(value: JsonValue, text: str) -> None:
    assert json.dumps(canonical(value)) == text


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        pytest.param(float("nan"), "NaN", id="NaN"),
        pytest.param([float("-inf")], "infinite", id="infinity"),
        pytest.param(10**400, "infinite", id="integer beyond the doubles"),
        pytest.param({"a\0": 1}, "NUL", id="NUL in a name"),
        pytest.param(["\ud800"], "surrogate", id="half a surrogate pair"),
        pytest.param(nested(6), "5 levels", id="too deep"),
        pytest.param(nested(10_000), "5 levels", id="much too deep"),
    ],
)
def test_canonical_refuses_what_cannot_be_stored(value: JsonValue, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        canonical(value)


def test_canonical_returns_a_copy() -> None:
    original: list[JsonValue] = ["a"]
    copy = canonical([original])
    original.append("b")
    assert copy == [["a"]]


@pytest.mark.parametrize(
    ("value", "bytes_"),
    [
        pytest.param("é", 2, id="text in UTF-8, without quotes"),
        pytest.param(True, 4, id="boolean"),
        pytest.param(1.5, 3, id="number"),
        pytest.param(["é", 1], 8, id="list, without spaces"),
        pytest.param({"a": None}, 10, id="object"),
    ],
)
def test_size_is_that_of_utf8_for_text_and_of_compact_json_for_the_rest(value: JsonValue, bytes_: int) -> None:
    assert size_bytes(value) == bytes_
