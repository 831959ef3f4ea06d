"""Drains gRPC servers: has their clients reconnect elsewhere, without a call that fails, or that runs and fails."""

import time
from collections.abc import Mapping
from typing import Protocol

import grpc

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.transport.goaway import Peer, connections, peer_of, stop_accepting
from gatekeeper_grpc.transport.grpcio_internals import end_streams, peers_being_served
from gatekeeper_grpc.transport.hold import CallHold

# How long calls are held so that those in progress can end: an evaluation takes a millisecond.
_HOLD_S = 0.01
_BUSY_POLL_INTERVAL_S = 0.001
_ROUND_INTERVAL_S = 0.01
# How long clients may take to disconnect once nothing keeps them.
_DISCONNECT_WITHIN_S = 1.0

Servers = Mapping[int, grpc.Server]
"""The servers of a process by the port that each listens on."""


class Drain(Protocol):
    """What servers do before they stop. `GoawayDrain` is for plaintext, `QuietDrain` for TLS."""

    def run(self, servers: Servers, *, by: float) -> int:
        """Accept no more connections to any of the servers, and have every client disconnect.

        Args:
            servers: Those that are drained, all at once; the caller stops them afterwards.
            by: When to give up, in monotonic seconds.

        Returns:
            How many connections are left.
        """
        ...


class GoawayDrain:
    """Sends GOAWAY to the clients, which go on being served.

    No call fails because of it, not even of a client that never retries: the servers serve every call that arrives, and
    after GOAWAY a client sends no more. A client in a long call stays.

    Args:
        hold: Holds the new calls of all servers.
    """

    def __init__(self, hold: CallHold) -> None:
        self._hold = hold
        # By port: a client may use one port of its own for both servers.
        self._notified: dict[int, set[Peer]] = {}

    def run(self, servers: Servers, *, by: float) -> int:
        """See `Drain`. It takes a second at most."""
        deadline = min(by, time.monotonic() + _DISCONNECT_WITHIN_S)
        _stop_accepting(servers)
        while (left := self._notify_all(servers)) and time.monotonic() < deadline:
            time.sleep(_ROUND_INTERVAL_S)
        return left

    def _notify_all(self, servers: Servers) -> int:
        """Send GOAWAY on every connection that can take it now; return how many connections are left."""
        with self._hold.held():
            return sum(self._notify(port, server) for port, server in servers.items())

    def _notify(self, port: int, server: grpc.Server) -> int:
        notified = self._notified.setdefault(port, set())
        established = {connection.peer for connection in connections(port) if connection.has_received_settings()}
        due = established - notified
        due -= self._busy_after_hold(server, due)
        notified.update(one.peer for one in connections(port) if one.peer in due and one.send_goaway())
        return len(established)

    def _busy_after_hold(self, server: grpc.Server, peers: set[Peer]) -> set[Peer]:
        """Give calls in progress a moment to end; return the peers whose calls have not."""
        until = time.monotonic() + _HOLD_S
        while (busy := _busy(server, self._hold) & peers) and time.monotonic() < until:
            time.sleep(_BUSY_POLL_INTERVAL_S)
        return busy


class QuietDrain:
    """Ends each connection while no call is in progress on it, and serves no new call.

    For TLS, inside which nobody but gRPC can write a frame. A call that arrives is held and never runs, so a client may
    send it again elsewhere: it gets UNAVAILABLE when the connection ends. A call in progress is answered, and the
    connection does not end before the client's machine has the whole answer. Streams end with UNAVAILABLE.

    Args:
        hold: Holds the new calls of all servers.
    """

    def __init__(self, hold: CallHold) -> None:
        self._hold = hold

    def run(self, servers: Servers, *, by: float) -> int:
        """See `Drain`. Connections that are left at the end are closed, whatever is in progress on them."""
        _stop_accepting(servers)
        self._hold.hold_for_good()
        for server in servers.values():
            end_streams(server, Unavailable("the server is shutting down"))
        quiet_since = time.monotonic()
        while left := sum(self._end_quiet(port, server) for port, server in servers.items()):
            now = time.monotonic()
            if any(_busy(server, self._hold) for server in servers.values()):
                quiet_since = now
            if now > min(by, quiet_since + _DISCONNECT_WITHIN_S):
                break
            time.sleep(_ROUND_INTERVAL_S)
        for connection in (one for port in servers for one in connections(port)):
            connection.disconnect()
        return left

    def _end_quiet(self, port: int, server: grpc.Server) -> int:
        """End the connections on which nothing is in progress; return how many are open."""
        # A call is in progress until the kernel has its last byte; what was sent is asked for only then.
        busy, found = _busy(server, self._hold), 0
        for connection in connections(port):
            found += 1
            if connection.peer not in busy and not connection.has_unreceived():
                connection.end()
        return found


def _stop_accepting(servers: Servers) -> None:
    for port in servers:
        stop_accepting(port)


def _busy(server: grpc.Server, hold: CallHold) -> set[Peer]:
    """Return the clients with a call in progress that is not held."""
    names = peers_being_served(server, excluding=hold.pending())
    return {peer for peer in map(peer_of, names) if peer is not None}
