"""Turns of logins: the address that has tried least goes first. The calls need nothing else here."""

from typing import Any

import pytest

from gatekeeper_grpc.transport.arrival import ADDRESS, Arrival, Owner, Standing
from gatekeeper_grpc.transport.login_slots import LoginSlots
from gatekeeper_grpc.transport.shares import PoolSize, Slots

pytestmark = pytest.mark.promise("C3")

SIZE = PoolSize(workers=1, queue=6, kept=2)


class Call:
    """A login of an owner."""

    def __init__(self, owner: str, standing: Standing) -> None:
        self.arrival = Arrival(owner=Owner(ADDRESS, owner), standing=standing)


def call_of(owner: str, *, tries: int = 0, network: int = 0, is_proven: bool = False) -> Any:
    return Call(owner, Standing(is_proven, tries, network))


def served(slots: Slots, waiting: list[Any]) -> str:
    """Queue calls and serve one after the other; returns the owners in that order."""
    assert [slots.add(call) for call in waiting] == [None] * len(waiting)
    owners = ""
    while (call := slots.start_next()) is not None:
        slots.finish(call)
        owners += str(call.arrival.owner.name)
    assert (slots.waiting, slots.running) == (0, 0)
    return owners


def test_least_tries_go_first_and_then_least_failures_of_the_network() -> None:
    waiting = [call_of("a", tries=1), call_of("b", network=2), call_of("c", network=1)]

    assert served(LoginSlots(SIZE), waiting) == "cba"


def test_among_equals_the_newest_goes_first() -> None:
    assert served(LoginSlots(SIZE), [call_of("a"), call_of("b"), call_of("c")]) == "cba"


def test_the_proven_and_the_others_take_turns() -> None:
    proven = [call_of(owner, is_proven=True) for owner in "AB"]

    assert served(LoginSlots(SIZE), [call_of("a"), call_of("b"), *proven, call_of("c")]) == "BcAba"


@pytest.mark.parametrize("is_proven", [True, False])
def test_in_a_full_queue_who_has_tried_most_gives_way(is_proven: bool) -> None:
    slots = LoginSlots(SIZE)
    room = SIZE.kept if is_proven else SIZE.queue - SIZE.kept
    waiting = [call_of(f"a{number}", tries=number, is_proven=is_proven) for number in range(1, room + 1)]
    assert [slots.add(call) for call in waiting] == [None] * room

    late = call_of("a", tries=room + 1, is_proven=is_proven)
    assert slots.add(late) is late
    assert slots.add(call_of("b", is_proven=is_proven)) is waiting[-1]
    assert slots.held_by(Owner(ADDRESS, f"a{room}")) == 0
    assert slots.add(call_of("c", is_proven=not is_proven)) is None, "one queue took the room of the other"


def test_one_address_has_half_of_a_queue_at_most() -> None:
    slots, further = LoginSlots(SIZE), call_of("a")
    assert [slots.add(call_of("a")) for _ in range(2)] == [None] * 2

    assert slots.add(further) is further
    assert slots.add(call_of("b")) is None


def test_all_that_is_taken_leaves_an_empty_pool() -> None:
    slots = LoginSlots(SIZE)
    waiting = [call_of("a", is_proven=True), call_of("b")]
    for call in waiting:
        slots.add(call)

    assert slots.take_all() == waiting
    assert (slots.waiting, slots.running, slots.start_next()) == (0, 0, None)


@pytest.mark.parametrize(("make", "first"), [(LoginSlots, "v"), (Slots, "a")], ids=["ours", "in turn"])
def test_a_newcomer_waits_for_one_check_and_not_for_all_of_an_attacker(make: type[Slots], first: str) -> None:
    """Twin: if addresses are served in turn, it waits for all that an attacker has."""
    slots = make(SIZE)
    for owner in "abc":
        slots.add(call_of(owner))
    slots.add(call_of("v"))

    following = slots.start_next()
    assert following is not None
    assert following.arrival.owner.name == first
