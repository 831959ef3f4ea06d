"""A queue that serves its owners in turn: what one of them has delays the others by one item, not by all."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """What waits, in turn of its owners; what one owner has waits in the order in which it came. Not thread-safe.

    Args:
        limit: How much waits at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[Hashable, deque[Item]] = OrderedDict()  # in turn; no queue is empty
        self._count = 0

    def __len__(self) -> int:
        """Count what waits."""
        return self._count

    @property
    def is_full(self) -> bool:
        """Whether one more has something give way."""
        return self._count >= self._limit

    def add(self, owner: Hashable, item: Item) -> Item | None:
        """Have `item` wait, behind all that its owner has waiting; return what gives way to it, if too much waits.

        That is the newest item of the owner with the most, or `item` if its owner has at least the average.
        """
        queue = self._waiting.get(owner)
        if queue is None:
            self._waiting[owner] = queue = deque((item,))
        else:
            queue.append(item)
        self._count += 1
        return self._take_newest(self._gives_way_to(owner)) if self._count > self._limit else None

    def _gives_way_to(self, owner: Hashable) -> Hashable:
        # Who floods has at least the average, and costs constant time. Only the others look at all owners.
        if len(self._waiting[owner]) * len(self._waiting) >= self._count:
            return owner
        return max(self._waiting, key=lambda each: len(self._waiting[each]))

    def _take_newest(self, owner: Hashable) -> Item:
        queue = self._waiting[owner]
        item = queue.pop()
        if not queue:
            del self._waiting[owner]
        self._count -= 1
        return item

    def take(self) -> Item:
        """Remove and return the oldest item of the owner whose turn it is.

        Raises:
            KeyError: Nothing waits.
        """
        owner, queue = self._waiting.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._waiting[owner] = queue
        self._count -= 1
        return item
