"""Drains a gRPC server: asks its clients to reconnect elsewhere while it still serves them."""

import time

import grpc

from gatekeeper_grpc.transport.goaway import Peer, connections, peer_of, stop_accepting
from gatekeeper_grpc.transport.grpcio_internals import peers_being_served
from gatekeeper_grpc.transport.hold import CallHold

# How long calls are held so that those in progress can end: an evaluation takes a millisecond.
_HOLD_S = 0.01
_BUSY_POLL_INTERVAL_S = 0.001
_ROUND_INTERVAL_S = 0.01


class Drain:
    """Sends GOAWAY to the clients of one server.

    Args:
        server: Keeps serving during the drain; the caller stops it afterwards.
        hold: Holds the new calls of this server.
    """

    def __init__(self, server: grpc.Server, hold: CallHold) -> None:
        self._server = server
        self._hold = hold
        self._notified: set[Peer] = set()

    def run(self, port: int, *, within_s: float) -> int:
        """Accept no more connections, and have every client disconnect that is not in a long call.

        No call fails because of it: the server serves every call that arrives, and after GOAWAY a client sends no more.

        Returns:
            How many connections are left, after `within_s` at most.
        """
        deadline = time.monotonic() + within_s
        stop_accepting(port)
        while (left := self._notify(port)) and time.monotonic() < deadline:
            time.sleep(_ROUND_INTERVAL_S)
        return left

    def _notify(self, port: int) -> int:
        """Send GOAWAY on every connection that can take it now; return how many connections are left."""
        with self._hold.held():
            established = {connection.peer for connection in connections(port) if connection.has_received_settings()}
            due = established - self._notified
            due -= self._busy_after_hold(due)
            self._notified.update(one.peer for one in connections(port) if one.peer in due and one.send_goaway())
        return len(established)

    def _busy_after_hold(self, peers: set[Peer]) -> set[Peer]:
        """Give calls in progress a moment to end; return the peers whose calls have not."""
        until = time.monotonic() + _HOLD_S
        while (busy := self._busy() & peers) and time.monotonic() < until:
            time.sleep(_BUSY_POLL_INTERVAL_S)
        return busy

    def _busy(self) -> set[Peer]:
        names = peers_being_served(self._server, excluding=self._hold.pending())
        return {peer for peer in map(peer_of, names) if peer is not None}
