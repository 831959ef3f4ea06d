"""How a gRPC server leaves: it asks its clients to go elsewhere while it still serves them, and only then it stops."""

import time

import grpc

from gatekeeper_grpc.transport.goaway import Connection, Peer, connections, peer_of, stop_accepting
from gatekeeper_grpc.transport.grpcio_internals import peers_being_served
from gatekeeper_grpc.transport.hold import CallHold

# For how long calls are held back so that those in progress can end: evaluations take a millisecond.
_HUSH_S = 0.01
_LOOK_EVERY_S = 0.001
_PAUSE_S = 0.01


class Drain:
    """Sends the clients of one server away.

    Args:
        server: Goes on serving meanwhile; to be stopped afterwards.
        gate: Which all its calls pass.
    """

    def __init__(self, server: grpc.Server, gate: CallHold) -> None:
        self._server = server
        self._gate = gate
        self._told: set[Peer] = set()

    def send_away(self, port: int, *, within_s: float) -> int:
        """Take no more connections, and have all clients hang up that are not in the middle of a long call.

        No call fails of this: what has arrived is served, and what comes after the goodbye is not sent here.

        Returns:
            How many connections are left after `within_s` at most.
        """
        deadline = time.monotonic() + within_s
        stop_accepting(port)
        while (left := self._ask_to_go(port)) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)
        return left

    def _ask_to_go(self, port: int) -> int:
        """Say goodbye to whom it can be said now; return how many are still there."""
        with self._gate.shut(), connections(port) as found:
            greeted = [connection for connection in found if connection.has_received_settings()]
            untold = [connection for connection in greeted if connection.peer not in self._told]
            busy = self._busy_after_a_hush(untold)
            self._told.update(one.peer for one in untold if one.peer not in busy and one.send_goaway())
        return len(greeted)

    def _busy_after_a_hush(self, untold: list[Connection]) -> set[Peer]:
        """Give calls in progress a moment to end; return whose have not."""
        until = time.monotonic() + _HUSH_S
        peers = {connection.peer for connection in untold}
        while (busy := self._busy() & peers) and time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)
        return busy

    def _busy(self) -> set[Peer]:
        names = peers_being_served(self._server, besides=self._gate.waiting())
        return {peer for peer in map(peer_of, names) if peer is not None}
