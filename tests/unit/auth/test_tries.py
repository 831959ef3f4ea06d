"""Counts of tries by address: the one that has tried least is served first."""

import pytest

from gatekeeper_grpc.auth.tries import Tries

pytestmark = pytest.mark.promise("C3")

ANNA, BOB = "ipv4:192.0.2.1:1", "ipv4:192.0.2.2:1"
WINDOW_S = 900.0


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_try_counts_from_its_arrival_for_its_address() -> None:
    tries = Tries(window_s=WINDOW_S, remembered=10)

    assert [tries.note(peer) for peer in (ANNA, ANNA, BOB)] == [0, 1, 0]


def test_a_try_that_succeeded_does_not_count() -> None:
    tries = Tries(window_s=WINDOW_S, remembered=10)
    for _ in range(2):
        tries.note(ANNA)
        tries.succeeded(ANNA)
    tries.succeeded(BOB)

    assert (tries.note(ANNA), tries.note(BOB)) == (0, 0)


def test_an_address_without_a_try_for_a_window_is_a_newcomer() -> None:
    clock = Clock()
    tries = Tries(window_s=WINDOW_S, remembered=10, clock=clock)
    seen = []
    for pause_s in (0.0, WINDOW_S - 1, WINDOW_S):
        clock.now += pause_s
        seen.append(tries.note(ANNA))

    assert seen == [0, 1, 0]


def test_what_is_remembered_is_bounded_and_the_longest_silent_is_forgotten() -> None:
    tries = Tries(window_s=WINDOW_S, remembered=2)
    for peer in (ANNA, BOB, ANNA, "ipv4:203.0.113.1:1"):
        tries.note(peer)

    assert (tries.note(ANNA), tries.note(BOB)) == (2, 0)
    assert len(tries._tallies) == 2
