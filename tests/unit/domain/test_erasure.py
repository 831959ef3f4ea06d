"""What counts as a mention of a person."""

import pytest

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.erasure import Mention

pytestmark = pytest.mark.promise("D9")


@pytest.mark.parametrize(
    ("user_id", "value", "mentioned"),
    [
        pytest.param("ann", "ann", True, id="alone"),
        pytest.param("ann", "for ann, who asked", True, id="a word"),
        pytest.param("ann", "annette", False, id="the beginning of another word"),
        pytest.param("ann", "joann", False, id="the end of another word"),
        pytest.param("ann", "ann_2", False, id="an underscore goes on"),
        pytest.param("ann", "ann2", False, id="a digit goes on"),
        pytest.param("ann", "annä", False, id="a letter of another alphabet goes on"),
        pytest.param("ann", "annette, ann", True, id="the second time"),
        pytest.param("ann", "Ann", False, id="another case is another id"),
        pytest.param("ann", "ann@example.com", True, id="within an address"),
        pytest.param("a.b", "axb", False, id="a dot is a dot"),
        pytest.param("+1 555", "call +1 555.", True, id="a number"),
        pytest.param("+1 555", "call x+1 555.", True, id="no letter on that side"),
        pytest.param("+1 555", "+1 5550", False, id="a digit goes on after a number"),
        pytest.param("<ann>", "x<ann>y", True, id="no letter on either side"),
        pytest.param("ann\n", "ann\n.", True, id="ends with a new line"),
        pytest.param("-", "a - b", False, id="punctuation of a sentence"),
        pytest.param("-", "-", True, id="punctuation alone"),
        pytest.param(" ", "a b", False, id="a space between words"),
        pytest.param("\n", "a\n\nb", False, id="an empty line"),
        pytest.param("\u0301", "cafe\u0301", False, id="an accent of a letter"),
        pytest.param("\u0301", "id \u0301", True, id="an accent alone"),
        pytest.param("\x01", "id \x01 !", True, id="a control character"),
        pytest.param("\U0001f468", "by \U0001f468\u200d\U0001f469", False, id="a part of a symbol"),
        pytest.param("ann", ["x", ["y", "ann"]], True, id="in a list"),
        pytest.param("ann", {"x": ["y", {"z": "ann"}]}, True, id="in an object"),
        pytest.param("ann", {"x": {"ann": 1}}, False, id="a name of a member is no text"),
        pytest.param("ann", {"x": [None, True, 1.5]}, False, id="no text"),
        pytest.param("1", {"x": 1}, False, id="a number is no text"),
    ],
)
def test_a_mention_is_the_whole_id_as_a_word(user_id: str, value: JsonValue, mentioned: bool) -> None:
    assert Mention(user_id).is_in(value) is mentioned
    assert (Mention(user_id).replaced_in(value) != value) is mentioned


@pytest.mark.parametrize(
    ("user_id", "value", "left"),
    [
        pytest.param("ann", "ann, ann's and annette", "[erased], [erased]'s and annette", id="each mention"),
        pytest.param("ann", {"ann": ["ann", 1, None]}, {"ann": ["[erased]", 1, None]}, id="texts of a value"),
        pytest.param("erased", "[erased] erased", "[erased] [erased]", id="the placeholder is no mention"),
        pytest.param("[erased]", "x [erased]", "x [erased]", id="who is called like the placeholder"),
        pytest.param("a\\1", "a\\1 b", "[erased] b", id="a back reference is text"),
    ],
)
def test_only_the_mention_is_replaced(user_id: str, value: JsonValue, left: JsonValue) -> None:
    assert Mention(user_id).replaced_in(value) == left
