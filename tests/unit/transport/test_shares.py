"""Shares: who gets a slot in a full pool, and whose turn it is. The calls need nothing but an owner here."""

from typing import Any

import pytest

from gatekeeper_grpc.transport.arrival import ADDRESS, Arrival, Owner, stranger
from gatekeeper_grpc.transport.shares import PoolSize, Slots

pytestmark = pytest.mark.promise("C1")

SMALL = PoolSize(workers=2, queue=2)


class Call:
    """A call of an owner, in the order of their making."""

    def __init__(self, owner: str) -> None:
        self.arrival = Arrival(owner=Owner(ADDRESS, owner))


def call_of(owner: str) -> Any:
    return Call(owner)


def calls(owners: str) -> list[Any]:
    return [call_of(owner) for owner in owners]


def filled(size: PoolSize, waiting: list[Any]) -> Slots:
    slots = Slots(size)
    assert [slots.add(call) for call in waiting] == [None] * len(waiting)
    return slots


def served(slots: Slots) -> str:
    """Serve one after the other; returns the owners in that order."""
    owners = ""
    while (call := slots.start_next()) is not None:
        slots.finish(call)
        owners += str(call.arrival.owner.name)
    return owners


def test_owners_are_served_in_turn_and_the_calls_of_each_in_order() -> None:
    assert served(filled(PoolSize(workers=1, queue=9), calls("aaaaabbc"))) == "abcabaaa"


def test_in_a_full_pool_the_newest_call_of_the_owner_of_most_gives_way() -> None:
    flood = calls("aaaa")
    slots = filled(SMALL, flood)

    assert slots.add(call_of("b")) is flood[-1]
    assert [slots.held_by(Owner(ADDRESS, owner)) for owner in "ab"] == [3, 1]


def test_the_owner_of_most_gets_no_further_slot() -> None:
    slots, another = filled(SMALL, calls("aaab")), call_of("a")

    assert slots.add(another) is another


def test_nobody_gives_way_to_an_owner_who_would_have_as_many() -> None:
    slots, another = filled(SMALL, calls("aabb")), call_of("a")

    assert slots.add(another) is another
    assert slots.add(call_of("c")) is not None
    assert slots.held_by(Owner(ADDRESS, "c")) == 1


def test_one_owner_occupies_its_share_of_the_workers_and_another_the_rest() -> None:
    slots = filled(PoolSize(workers=4, queue=8, share=0.5), calls("aaaab"))
    running = [slots.start_next() for _ in range(4)]

    assert [call and call.arrival.owner.name for call in running] == ["a", "b", "a", None]
    assert running[0] is not None
    slots.finish(running[0])
    following = slots.start_next()
    assert following is not None
    assert following.arrival.owner.name == "a"


def test_a_share_is_at_least_one_worker() -> None:
    assert PoolSize(workers=1, queue=0, share=0.1).workers_for_one == 1


def test_all_that_is_taken_leaves_an_empty_pool() -> None:
    waiting = calls("aab")
    slots = filled(SMALL, waiting)

    assert slots.take_all() == [waiting[0], waiting[1], waiting[2]]
    assert (slots.waiting, slots.running, slots.start_next()) == (0, 0, None)


@pytest.mark.parametrize(
    ("peer", "neighbour", "is_same"),
    [
        ("ipv4:127.0.0.1:1", "ipv4:127.0.0.1:2", True),
        ("ipv4:127.0.0.1:1", "ipv4:127.0.0.2:1", False),
        ("ipv6:%5B2001:db8::1%5D:1", "ipv6:%5B2001:db8::ffff:2%5D:1", True),
        ("ipv6:%5B2001:db8::1%5D:1", "ipv6:%5B2001:db8:0:1::1%5D:1", False),
        ("ipv6:%5B::1%5D:1", "ipv6:%5B::1%5D:2", True),
        ("unix:/run/a", "unix:/run/b", True),
    ],
)
def test_a_stranger_counts_by_address_or_by_64_bits_of_it(peer: str, neighbour: str, is_same: bool) -> None:
    assert (stranger(peer).owner == stranger(neighbour).owner) is is_same
