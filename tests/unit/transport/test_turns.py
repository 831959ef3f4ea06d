"""Turns: whose item is next."""

import pytest

from gatekeeper_grpc.transport.turns import Turns

pytestmark = pytest.mark.promise("C1")


def taken(turns: Turns[str]) -> str:
    """Take all, one after the other."""
    return "".join(turns.take() for _ in range(len(turns)))


def turns_of(items: str) -> Turns[str]:
    """Add items in this order, each of the owner of its name; case tells the items of an owner apart."""
    turns = Turns[str](limit=10_000)
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


def added_beyond(limit: int, items: str) -> tuple[str, str]:
    """What gives way while these items are added, and what is left, in turn."""
    turns = Turns[str](limit)
    gave_way = [turns.add(item.lower(), item) for item in items]
    return "".join(filter(None, gave_way)), taken(turns)


@pytest.mark.parametrize(
    ("added", "gave_way", "left"),
    [
        ("aaa", "", "aaa"),
        ("aaaA", "A", "aaa"),  # one owner: what has come last
        ("aaAb", "A", "aba"),  # the newest of the owner with most, for one who has less
        ("aabB", "B", "aba"),  # as much as the others have: itself
        ("abcd", "d", "abc"),
    ],
)
def test_of_too_much_the_newest_of_the_owner_with_most_gives_way(added: str, gave_way: str, left: str) -> None:
    assert added_beyond(3, added) == (gave_way, left)
