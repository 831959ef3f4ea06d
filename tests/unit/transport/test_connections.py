"""Which connections give way: first those of the address with the most, the longest idle, and never one with a call."""

from collections.abc import Iterable

import pytest

from gatekeeper_grpc.transport.connections import ConnectionLimits, IdleTime, surplus
from gatekeeper_grpc.transport.goaway import Peer

LIMITS = ConnectionLimits(most=8)


def of(host: str, *idle: float) -> list[IdleTime]:
    """Connections of one address that have been idle for so long."""
    return [IdleTime((host, port), seconds) for port, seconds in enumerate(idle)]


def chosen(*groups: list[IdleTime], busy: Iterable[Peer] = ()) -> list[Peer]:
    found = [connection for group in groups for connection in group]
    return surplus(found, busy=set(busy), limits=LIMITS)


def test_limits_leave_a_quarter_free_and_half_to_other_addresses() -> None:
    assert (LIMITS.crowded, LIMITS.full, LIMITS.of_address) == (6, 6, 4)


def test_nothing_gives_way_while_there_is_room() -> None:
    assert chosen(of("127.0.1.1", 1, 2, 3, 4), of("127.0.1.2", 9, 9)) == []


def test_an_address_keeps_half_of_the_connections_those_idle_least() -> None:
    assert chosen(of("127.0.1.1", 1, 60, 3, 50, 5, 6)) == [("127.0.1.1", 1), ("127.0.1.1", 3)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_loopback_is_not_exempt(host: str) -> None:
    assert len(chosen(of(host, *range(10)))) == 6


def test_the_address_with_the_most_gives_way_and_not_the_longest_idle_one() -> None:
    assert chosen(of("127.0.2.1", 1_000), of("127.0.1.1", 1, 2, 3, 4), of("127.0.1.2", 5, 6)) == [("127.0.1.1", 3)]


def test_of_addresses_with_as_many_the_longest_idle_one_gives_way() -> None:
    single = [of(f"127.0.1.{number}", number)[0] for number in range(1, 9)]

    assert chosen(single) == [("127.0.1.8", 0), ("127.0.1.7", 0)]


def test_a_new_connection_does_not_give_way_while_others_are_idle() -> None:
    """It may be in the middle of its handshake, and others share its address."""
    just_come = of("127.0.2.1", 0.0, 0.1, 0.2, 0.3)
    attackers = [of(f"127.0.1.{number}", number) for number in range(1, 5)]

    assert chosen(just_come, *attackers) == [("127.0.1.4", 0), ("127.0.1.3", 0)]


def test_if_all_are_new_the_address_with_the_most_gives_way() -> None:
    assert chosen(of("127.0.1.1", 0.1, 0.2, 0.3, 0.4), of("127.0.2.1", 0.5, 0.6, 0.7)) == [("127.0.1.1", 3)]


def test_a_connection_with_a_call_gives_way_only_above_its_share() -> None:
    crowd = of("127.0.1.1", 9, 8, 7, 6), of("127.0.1.2", 5, 4, 3, 2)
    busy = [one.peer for group in crowd for one in group]

    assert chosen(*crowd, busy=busy) == []
    assert len(chosen(of("127.0.1.1", *range(6)), busy=[("127.0.1.1", port) for port in range(6)])) == 2


def test_connections_of_one_ipv6_network_count_together() -> None:
    assert len(chosen([IdleTime((f"2001:db8::{number}", 1), number) for number in range(1, 7)])) == 2
