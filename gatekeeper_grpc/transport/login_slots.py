"""The slots of a pool that checks passwords: the address that has tried least goes first.

A check takes a core for a fifth of a second, and anybody may ask for one. If addresses were served in turn, a login
would wait for all addresses that an attacker has. docs/decisions/0027-turns-of-logins.md
"""

from bisect import bisect_left

from gatekeeper_grpc.transport.arrival import Owner, Standing
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.transport.shares import PoolSize, Slots


class LoginSlots(Slots):
    """The calls that run or wait in one pool that checks passwords. Not thread-safe, like `Slots`.

    Two queues take turns: one of calls whose address is proven, with `kept` slots, and one of all others. In each the
    call goes first whose address has tried least without success, of several the one whose network has failed least, of
    these the newest: an attacker whose logins all wait delays a newcomer by one check, not by all of them. In a full
    queue the last gives way. One address has half of a queue at most.
    """

    def __init__(self, size: PoolSize) -> None:
        super().__init__(size)
        self._limits = {True: size.kept, False: size.queue - size.kept}
        self._queues: dict[bool, list[ArrivedCall]] = {True: [], False: []}  # by whether proven; the first is next
        self._is_turn_of_proven = True

    def add(self, call: ArrivedCall) -> ArrivedCall | None:
        """Queue a call; return the call that gets no slot: none, another one that gives way, or this one."""
        standing, owner = call.arrival.standing, call.arrival.owner
        queue = self._queues[standing.is_proven]
        if _count(queue, owner) >= self._limits[standing.is_proven] // 2:
            return call
        queue.insert(bisect_left(queue, standing, key=_standing), call)
        if len(queue) > self._limits[standing.is_proven]:
            return queue.pop()
        self.waiting += 1
        return None

    def start_next(self) -> ArrivedCall | None:
        """Start the call whose turn it is; None if none waits."""
        queue = self._queues[self._is_turn_of_proven] or self._queues[not self._is_turn_of_proven]
        if not queue:
            return None
        call = queue.pop(0)
        self._is_turn_of_proven = not call.arrival.standing.is_proven
        self.waiting -= 1
        return self._start(call)

    def held_by(self, owner: Owner) -> int:
        """Count the calls of one owner."""
        return len(self._running.get(owner, ())) + sum(_count(queue, owner) for queue in self._queues.values())

    def take_all(self) -> list[ArrivedCall]:
        """Remove and return all calls that wait."""
        calls = [call for queue in self._queues.values() for call in queue]
        for queue in self._queues.values():
            queue.clear()
        self.waiting = 0
        return calls


def _count(queue: list[ArrivedCall], owner: Owner) -> int:
    return sum(call.arrival.owner == owner for call in queue)


def _standing(call: ArrivedCall) -> Standing:
    return call.arrival.standing
