"""Keeps the connections of clients below what the process may have open, and lets the idle ones give way.

grpcio refuses connections above a number, and that is all: an attacker who holds that number keeps everybody else out.
"""

import time
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import grpc
import structlog

from gatekeeper_grpc.auth.addresses import address_of
from gatekeeper_grpc.scheduler import OnDemandThread
from gatekeeper_grpc.transport.goaway import Peer, connections, open_descriptors, peer_of
from gatekeeper_grpc.transport.grpcio_internals import peers_being_served

_log = structlog.get_logger(__name__)

CHECK_CONNECTIONS_EVERY_S = 0.25
# While connections are being closed, the next sweep follows soon: a client opens thousands of them a second.
_PAUSE_S = 0.02
# A sweep of 10,000 connections takes 0.3 s. It must not keep the interpreter busy, unless newcomers would be refused.
_SHARE_OF_CPU = 0.2
_SHARE_OF_CPU_WHEN_FULL = 0.5
_CALM_AFTER_S = 1.0
# Who has sent something within this time may be in the middle of a handshake, which with TLS takes some round trips.
_NEW_FOR_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections a server may have."""

    most: int
    """grpcio refuses more."""

    @property
    def crowded(self) -> int:
        """Above it, idle connections give way, so that there is room for new ones."""
        return self.most * 3 // 4

    @property
    def full(self) -> int:
        """Above it, a quarter of that room is taken: newcomers may soon be refused."""
        return self.most * 13 // 16

    @property
    def of_address(self) -> int:
        """How many one address may have (an IPv6 /64); loopback is not exempt."""
        return max(1, self.most // 2)


class IdleTime(NamedTuple):
    """How long a client has sent nothing."""

    peer: Peer
    idle_s: float


class ConnectionSweeper:
    """Closes connections of a server when there are too many, those that are idle longest without a call.

    An address with more connections than others gives way first. A connection with a call in progress gives way only
    if its address has too many.

    Args:
        server: Whose connections they are.
        limits: How many there may be.
    """

    def __init__(self, server: grpc.Server, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.closed = 0
        """How many connections were closed; only the sweeping thread writes it."""
        self._server = server
        self._port = 0
        self._is_closing = False
        self._is_full = False
        self._thread = OnDemandThread("connections", self._sweep_until_calm)

    def start(self, port: int) -> None:
        """Sweep the connections to `port` from now on, whenever `check` finds many."""
        self._port = port

    def close(self) -> None:
        """Sweep no more."""
        self._is_closing = True
        self._thread.close()

    def check(self) -> None:
        """Start to sweep if there may be too many connections; takes a millisecond at 5,000 descriptors."""
        if self._port and open_descriptors() > min(self.limits.crowded, self.limits.of_address):
            self._thread.request()

    def count(self) -> int:
        """Count the connections."""
        return sum(1 for _ in connections(self._port))

    def sweep(self) -> int:
        """Close what is too much; return how many connections that were."""
        descriptors, found = dict[Peer, int](), list[IdleTime]()
        for connection in connections(self._port):
            descriptors[connection.peer] = connection.descriptor
            found.append(IdleTime(connection.peer, connection.idle_s()))
        self._is_full = len(found) > self.limits.full
        leaving = self._surplus(found)
        if leaving:
            for connection in connections(self._port, among=[descriptors[peer] for peer in leaving]):
                if connection.peer in leaving:
                    connection.disconnect()
            self.closed += len(leaving)
            _log.warning("connections_closed", count=len(leaving), open=len(found), limit=self.limits.most)
        return len(leaving)

    def _sweep_until_calm(self) -> None:
        calm_at = time.monotonic() + _CALM_AFTER_S
        while not self._is_closing and time.monotonic() < calm_at:
            began_cpu_s = time.thread_time()
            if self.sweep():
                calm_at = time.monotonic() + _CALM_AFTER_S
            share = _SHARE_OF_CPU_WHEN_FULL if self._is_full else _SHARE_OF_CPU
            time.sleep(max(_PAUSE_S, (time.thread_time() - began_cpu_s) / share))

    def _surplus(self, found: list[IdleTime]) -> set[Peer]:
        if len(found) <= min(self.limits.crowded, self.limits.of_address):
            return set()
        busy = {peer for name in peers_being_served(self._server, excluding=()) if (peer := peer_of(name))}
        return set(surplus(found, busy=busy, limits=self.limits))


def surplus(found: list[IdleTime], *, busy: set[Peer], limits: ConnectionLimits) -> list[Peer]:
    """Choose the connections that give way, those of the address with the most of them first.

    New ones give way last: a client may share its address with others, and have no call yet because it has just come.

    Args:
        found: All that are open.
        busy: The peers with a call in progress.
        limits: How many there may be.
    """
    groups: dict[str, deque[IdleTime]] = {}
    for one in sorted(found, key=lambda one: (one.peer in busy, -one.idle_s)):
        groups.setdefault(_owner(one.peer[0]), deque()).append(one)
    first = [_rank(group, address) for address, group in groups.items()]
    heapify(first)
    chosen: list[Peer] = []
    while first:
        *_, address = heappop(first)
        group, is_crowded = groups[address], len(found) - len(chosen) > limits.crowded
        if len(group) > limits.of_address or (is_crowded and group[0].peer not in busy):
            chosen.append(group.popleft().peer)
            if group:
                heappush(first, _rank(group, address))
    return chosen


def _rank(group: deque[IdleTime], address: str) -> tuple[bool, int, float, str]:
    """Return what orders addresses: the one with most is first; of those, the one whose connection is idle longest."""
    idle_s = group[0].idle_s
    return idle_s < _NEW_FOR_S, -len(group), -idle_s, address


@lru_cache(maxsize=4_096)
def _owner(host: str) -> str:
    return address_of(f"ipv6:[{host}]:0" if ":" in host else f"ipv4:{host}:0")
