"""The contract's limits: the last value inside is accepted, the first outside refused, and the field named."""

from collections.abc import Callable
from functools import partial

import pytest

from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import (
    check_count,
    check_distinct,
    check_key,
    check_text,
    check_user_id,
    check_user_ids,
    check_visible,
)

pytestmark = pytest.mark.promise("D6")

two_texts = partial(check_count, at_least=1, at_most=2)
short_text = partial(check_text, at_least=1, at_most=3)
two_users = partial(check_user_ids, at_most=2)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        pytest.param(check_key, "a", id="key of one character"),
        pytest.param(check_key, "0" + "-" * 127, id="key of 128 characters"),
        pytest.param(check_key, "Az09._-", id="key of every kind of character"),
        pytest.param(check_user_id, "u", id="user id of one byte"),
        pytest.param(check_user_id, "u" * 256, id="user id of 256 bytes"),
        pytest.param(check_user_id, "🦉" * 64, id="user id of 256 bytes in 64 characters"),
        pytest.param(check_user_id, " \n\t", id="user id of blanks"),
        pytest.param(two_users, ["a", "b"], id="as many users as allowed"),
        pytest.param(short_text, "abc", id="text of the greatest length"),
        pytest.param(short_text, "🦉🦉🦉", id="text is counted in characters"),
        pytest.param(two_texts, ["a", "b"], id="as many entries as allowed"),
        pytest.param(check_distinct, [], id="nothing stands twice in nothing"),
        pytest.param(check_distinct, ["a", "A"], id="case makes a difference"),
    ],
)
def test_the_last_value_within_a_limit_is_accepted(check: Callable[[str, object], None], value: object) -> None:
    check("field", value)


@pytest.mark.parametrize(
    ("check", "value", "field"),
    [
        pytest.param(check_key, "", "field", id="empty key"),
        pytest.param(check_key, "k" * 129, "field", id="key of 129 characters"),
        pytest.param(check_key, ".a", "field", id="key that begins with a dot"),
        pytest.param(check_key, "-a", "field", id="key that begins with a dash"),
        pytest.param(check_key, "_a", "field", id="key that begins with an underscore"),
        pytest.param(check_key, "a b", "field", id="key with a blank"),
        pytest.param(check_key, "a\0", "field", id="key with NUL at its end"),
        pytest.param(check_key, "a/b", "field", id="key with a slash"),
        pytest.param(check_key, "a%", "field", id="key with a percent sign"),
        pytest.param(check_key, "a\n", "field", id="key with a newline at its end"),
        pytest.param(check_key, "é", "field", id="key with a letter that is not ASCII"),
        pytest.param(check_key, "a٣", "field", id="key with a digit that is not ASCII"),
        pytest.param(check_user_id, "", "field", id="empty user id"),
        pytest.param(check_user_id, "u" * 257, "field", id="user id of 257 bytes"),
        pytest.param(check_user_id, "🦉" * 64 + "u", "field", id="user id of 257 bytes in 65 characters"),
        pytest.param(check_user_id, "a\0b", "field", id="user id with NUL"),
        pytest.param(check_user_id, "\0", "field", id="user id of NUL alone"),
        pytest.param(check_user_id, "a" * 100 + "\0", "field", id="long user id with NUL"),
        pytest.param(two_users, [], "field", id="no users"),
        pytest.param(two_users, ["a", "b", "c"], "field", id="too many users"),
        pytest.param(two_users, ["a", ""], "field[1]", id="bad user"),
        pytest.param(two_users, ["a", "a"], "field[1]", id="user twice"),
        pytest.param(short_text, "", "field", id="text too short"),
        pytest.param(short_text, "abcd", "field", id="text too long"),
        pytest.param(short_text, "a\0", "field", id="text with NUL"),
        pytest.param(two_texts, [], "field", id="too few entries"),
        pytest.param(two_texts, ["a", "b", "c"], "field", id="too many entries"),
        pytest.param(check_distinct, ["a", "b", "c", "b", "a"], "field[3]", id="the first repetition"),
    ],
)
def test_the_first_value_beyond_a_limit_is_refused_and_its_field_named(
    check: Callable[[str, object], None], value: object, field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check("field", value)

    assert [violation.field for violation in refused.value.violations] == [field]


def test_a_refusal_says_the_same_to_people_and_to_programs() -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_count("user_ids", ["a", "b"], at_most=1)

    assert str(refused.value) == "user_ids must have 0 to 1 entries, not 2"
    assert refused.value.metadata == {"field": "user_ids"}
    assert [violation.description for violation in refused.value.violations] == ["must have 0 to 1 entries, not 2"]


@pytest.mark.parametrize(
    "text",
    ["alice", "a b", "Zoë", "e\u0301", "山田\u3000太郎", "उपयोगकर्ता", "❤\ufe0f", "\ue000", "\U0010ffff", ""],
    ids=ascii,
)
def test_what_can_be_seen_is_a_name(text: str) -> None:
    check_visible("f", text)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        pytest.param("alice\r", "U+000D", id="line end of Windows"),
        pytest.param("a\tb", "U+0009", id="tab inside"),
        pytest.param("\x1b[31m", "U+001B", id="escape"),
        pytest.param("\x85", "U+0085", id="control beyond ASCII"),
        pytest.param("\ufeffalice", "U+FEFF", id="byte order mark"),
        pytest.param("a\u200bb", "U+200B", id="zero-width space"),
        pytest.param("a\u200db", "U+200D", id="zero-width joiner"),
        pytest.param("a\u2060b", "U+2060", id="word joiner"),
        pytest.param("a\u00adb", "U+00AD", id="soft hyphen"),
        pytest.param("a\u202eb", "U+202E", id="right-to-left override"),
        pytest.param("a\u2066b", "U+2066", id="isolate"),
        pytest.param("a\u2028b", "U+2028", id="line separator"),
        pytest.param("a\U000e0041", "U+E0041", id="tag"),
        pytest.param("\u3164", "U+3164", id="filler that counts as a letter"),
        pytest.param(" a", "white space", id="leading space"),
        pytest.param("a ", "white space", id="trailing space"),
        pytest.param(" ", "white space", id="nothing but a space"),
        pytest.param("a\u00a0", "white space", id="no-break space at the end"),
        pytest.param("\u3000a", "white space", id="ideographic space at the start"),
    ],
)
def test_what_cannot_be_seen_is_refused_by_its_number(text: str, first: str) -> None:
    with pytest.raises(InvalidArgument, match=first.replace("+", r"\+")) as refused:
        check_visible("user_ids[3]", text)

    assert refused.value.violations[0].field == "user_ids[3]"
