from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.attribute_memo import AttributeMemo
from gatekeeper_grpc.domain.text_search import TextSearch


def test_a_value_is_derived_once_and_values_of_two_types_apart() -> None:
    derived: list[JsonValue] = []

    def derive(value: JsonValue) -> str:
        derived.append(value)
        return repr(value)

    memo = AttributeMemo(TextSearch())
    one: JsonValue = [1]
    true: JsonValue = [True]  # equal to Python, not in JSON

    assert [memo.once(derive, value) for value in (one, true, one, true)] == ["[1]", "[True]", "[1]", "[True]"]
    assert derived == [one, true]


def test_a_value_that_cannot_be_derived_is_none_and_is_not_tried_again() -> None:
    tries: list[JsonValue] = []

    def fail(value: JsonValue) -> str:
        tries.append(value)
        raise ValueError

    memo = AttributeMemo(TextSearch())

    assert [memo.once(fail, "x"), memo.once(fail, "x")] == [None, None]
    assert len(tries) == 1


def test_a_text_is_searched_once() -> None:
    class Counting(TextSearch):
        searched = 0

        def found_in(self, text: str) -> frozenset[str]:
            Counting.searched += 1
            return super().found_in(text)

    memo, text = AttributeMemo(Counting(["b", "c"])), "abc"

    assert [memo.texts_in(text), memo.texts_in(text)] == [{"b", "c"}] * 2
    assert Counting.searched == 1
