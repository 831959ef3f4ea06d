"""Receive slots: few at once, a share for each address, turns for those who wait, and the slow make way."""

import grpc_testing  # type: ignore[import-untyped] # Published without types.

from gatekeeper_grpc.transport.arrival import ADDRESS, Owner
from gatekeeper_grpc.transport.receive_slots import ReceiveSlots


def owner(name: str) -> Owner:
    return Owner(ADDRESS, name)


class Slots(ReceiveSlots[str]):
    """Slots of items that are named after their address: "anna-1" belongs to "anna"."""

    def __init__(self, count: int, *, max_waiting: int = 100) -> None:
        self.clock = grpc_testing.strict_fake_time(1_000.0)
        super().__init__(count, max_waiting=max_waiting, clock=self.clock.time)

    def ask(self, *items: str) -> list[str]:
        """Request a slot for each item; return those that start."""
        return [item for item in items if self.request(item, owner(item.partition("-")[0]))]

    def after(self, seconds: float) -> list[str]:
        """What must make way when this time has passed."""
        self.clock.sleep_for(seconds)
        return self.overdue()

    def all_next(self) -> list[str]:
        """What starts now."""
        return [*iter(self.start_next, None)]


def test_one_address_takes_half_of_the_slots_at_most() -> None:
    slots = Slots(4)

    assert slots.ask("anna-1", "anna-2", "anna-3", "bert-1", "bert-2", "cora-1") == [
        "anna-1",
        "anna-2",
        "bert-1",
        "bert-2",
    ]
    assert (slots.receiving, slots.waiting) == (4, 2)


def test_addresses_take_turns_however_much_one_of_them_asks() -> None:
    slots = Slots(2)
    slots.ask("anna-1", "bert-1", *(f"anna-{number}" for number in range(2, 50)), "cora-1", "dora-1")

    started = []
    for ended in ("anna-1", "bert-1", "cora-1"):
        slots.release(ended, is_received=False)
        started += slots.all_next()

    assert started == ["anna-2", "cora-1", "dora-1"]


def test_nothing_makes_way_while_nobody_waits() -> None:
    slots = Slots(2)
    slots.ask("anna-1", "bert-1")

    assert slots.after(60.0) == []


def test_a_slow_message_makes_way_once_when_another_waits() -> None:
    slots = Slots(2)
    slots.ask("anna-1", "bert-1", "cora-1")

    assert slots.after(0.125) == []
    assert slots.after(0.125) == ["anna-1", "bert-1"]
    assert slots.after(10.0) == []


def test_the_proven_go_first_and_those_who_made_way_last() -> None:
    slots = Slots(2)
    slots.ask("proven-1")
    slots.release("proven-1", is_received=True)
    slots.ask("slow-1", "other-1", "slow-2", "unknown-1", "proven-2")
    slots.after(1.0)

    slots.release("slow-1", is_received=False)
    slots.release("other-1", is_received=False)
    assert slots.all_next() == ["proven-2", "unknown-1"]
    slots.release("proven-2", is_received=True)
    assert slots.all_next() == ["slow-2"]


def test_suspects_together_take_half_of_the_slots_at_most() -> None:
    slots = Slots(4)
    slots.ask(*(f"crowd{number}-1" for number in range(5)))
    for item in slots.after(1.0):
        slots.release(item, is_received=False)

    assert slots.all_next() == ["crowd4-1"]
    assert slots.ask(*(f"crowd{number}-2" for number in range(4))) == ["crowd0-2", "crowd1-2"]
    assert slots.ask("victim-1") == ["victim-1"]


def test_the_proven_make_no_way_for_a_suspect() -> None:
    slots = Slots(2)
    slots.ask("proven-1", "slow-1")
    slots.release("proven-1", is_received=True)
    slots.ask("proven-2", "slow-2")

    assert slots.after(0.25) == ["slow-1"]
    assert slots.after(60.0) == []


def test_a_waiting_item_too_many_of_one_address_removes_its_oldest() -> None:
    slots = Slots(2, max_waiting=4)
    slots.ask("anna-1", "bert-1", "bert-2", "anna-2", "anna-3", "anna-4")

    assert slots.remove_surplus(owner("anna")) == "anna-2"
    assert slots.remove_surplus(owner("anna")) is None
    assert slots.waiting == 3


def test_a_waiting_item_too_many_in_all_removes_the_oldest() -> None:
    slots = Slots(2, max_waiting=2)
    slots.ask("anna-1", "bert-1", "cora-1", "dora-1", "emil-1")

    assert slots.remove_surplus(owner("emil")) == "cora-1"
    assert slots.waiting == 2


def test_an_item_that_no_longer_waits_does_not_start() -> None:
    slots = Slots(2)
    slots.ask("anna-1", "bert-1", "cora-1")

    assert slots.remove("cora-1")
    assert not slots.remove("cora-1")
    slots.release("anna-1", is_received=True)
    assert slots.all_next() == []


def test_remembered_of_many_addresses_are_forgotten() -> None:
    slots = Slots(2)
    for number in range(10_000):
        slots.ask(f"address{number}-1")
        slots.release(f"address{number}-1", is_received=True)

    assert len(slots._remembered) == 4_096
