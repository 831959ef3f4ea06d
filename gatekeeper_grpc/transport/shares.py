"""The slots of one pool, and whose calls take them: nobody takes what others need.

Each owner (an address, a client key or an admin user) has its own queue, and the queues are served in turn. So the wait
of a call depends on how many others call, not on how much they call. docs/decisions/0015-shares-of-a-pool.md
"""

from collections import OrderedDict, deque
from dataclasses import dataclass
from math import ceil

from gatekeeper_grpc.transport.arrival import Owner
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSize:
    """How many calls run at once, and how many more may queue for a worker; in a full pool one is refused."""

    workers: int
    queue: int
    share: float = 1.0
    """Largest part of the workers that the calls of one owner occupy, from 0 to 1; at least one worker."""
    kept: int = 0
    """How many places of the queue are for the proven, in a pool that checks passwords (`LoginSlots`)."""
    is_preemptive: bool = False
    """Whether a running stream is ended for a call that waits, if its owner occupies at least two workers more."""

    @property
    def slots(self) -> int:
        """How many calls run or wait."""
        return self.workers + self.queue

    @property
    def workers_for_one(self) -> int:
        """How many workers the calls of one owner occupy at most."""
        return max(1, ceil(self.workers * self.share))


class Slots:
    """The calls that run or wait in one pool. Not thread-safe: the pool holds its lock. No method waits."""

    def __init__(self, size: PoolSize) -> None:
        self._size = size
        self._workers_for_one = size.workers_for_one
        self._waiting: OrderedDict[Owner, deque[ArrivedCall]] = OrderedDict()  # in turn; no queue is empty
        self._running: dict[Owner, list[ArrivedCall]] = {}  # no list is empty
        self.waiting = 0
        """How many calls wait."""
        self.running = 0
        """How many calls run."""

    def add(self, call: ArrivedCall) -> ArrivedCall | None:
        """Queue a call; return the call that gets no slot: none, another one that gives way, or this one."""
        if self.waiting + self.running < self._size.slots:
            self._append(call)
            return None
        owner = self._gives_way_to(call)
        if owner is None:
            return call
        displaced = self._take(owner, newest=True)
        self._append(call)
        return displaced

    def start_next(self) -> ArrivedCall | None:
        """Start the call whose turn it is; None if none waits, or all owners that wait occupy their workers."""
        for owner in self._waiting:
            if len(self._running.get(owner, ())) < self._workers_for_one:
                break
        else:
            return None
        call = self._take(owner, newest=False)
        if owner in self._waiting:
            self._waiting.move_to_end(owner)
        return self._start(call)

    def finish(self, call: ArrivedCall) -> None:
        """Free the slot of a call that ran."""
        owner = call.arrival.owner
        self.running -= 1
        self._running[owner].remove(call)
        if not self._running[owner]:
            del self._running[owner]

    def held_by(self, owner: Owner) -> int:
        """Count the calls of one owner."""
        return len(self._running.get(owner, ())) + len(self._waiting.get(owner, ()))

    def preempted_by(self, owner: Owner) -> ArrivedCall | None:
        """Return the running call that is to end for a call of `owner` that waits; None: none is.

        It is the newest of the owner who occupies the most workers. It may have been returned before.
        """
        if not self._size.is_preemptive or self.running < self._size.workers:
            return None
        most = max(self._running.values(), key=len)
        return most[-1] if len(most) > len(self._running.get(owner, ())) + 1 else None

    def take_all(self) -> list[ArrivedCall]:
        """Remove and return all calls that wait."""
        calls = [call for queue in self._waiting.values() for call in queue]
        self._waiting.clear()
        self.waiting = 0
        return calls

    def _append(self, call: ArrivedCall) -> None:
        queue = self._waiting.get(call.arrival.owner)
        if queue is None:
            self._waiting[call.arrival.owner] = deque((call,))
        else:
            queue.append(call)
        self.waiting += 1

    def _take(self, owner: Owner, *, newest: bool) -> ArrivedCall:
        queue = self._waiting[owner]
        call = queue.pop() if newest else queue.popleft()
        if not queue:
            del self._waiting[owner]
        self.waiting -= 1
        return call

    def _start(self, call: ArrivedCall) -> ArrivedCall:
        self._running.setdefault(call.arrival.owner, []).append(call)
        self.running += 1
        return call

    def _gives_way_to(self, call: ArrivedCall) -> Owner | None:
        """Return who gives way to `call`: of those who wait, the owner of most calls; None: nobody."""
        owner = max(self._waiting, key=self.held_by, default=None)
        # One call more than the newcomer would have: a slot would only change hands.
        is_less = owner is not None and self.held_by(owner) > self.held_by(call.arrival.owner) + 1
        return owner if is_less else None
