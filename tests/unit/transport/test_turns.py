"""Turns: whose item is next."""

import pytest

from gatekeeper_grpc.transport.turns import Turns

pytestmark = pytest.mark.promise("C1")


def taken(turns: Turns[str]) -> str:
    """Take all, one after the other."""
    return "".join(turns.take() for _ in range(len(turns)))


def turns_of(items: str) -> Turns[str]:
    """Add items in this order, each of the owner of its name; case tells the items of an owner apart."""
    turns = Turns[str]()
    for item in items:
        turns.add(item.lower(), item)
    return turns


@pytest.mark.parametrize(
    ("added", "expected"),
    [("", ""), ("aaa", "aaa"), ("aaab", "abaa"), ("aAabBc", "abcABa"), ("aabbc", "abcab")],
)
def test_owners_have_turns_and_each_gets_its_oldest(added: str, expected: str) -> None:
    assert taken(turns_of(added)) == expected


def test_a_newcomer_waits_for_one_item_of_each_other_owner() -> None:
    turns = turns_of("a" * 1_000 + "b" * 1_000)
    assert turns.take() == "a"
    turns.add("c", "c")

    assert [turns.take() for _ in range(3)] == ["b", "a", "c"]


def test_an_owner_whose_items_are_taken_is_forgotten() -> None:
    turns = turns_of("ab")
    taken(turns)

    assert len(turns) == 0
    with pytest.raises(KeyError):
        turns.take()
