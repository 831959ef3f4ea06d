"""A queue that serves its owners in turn: what one of them has delays the others by one item, not by all."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

MAX_WAITING_CALLS: Final = 8_000
"""How many new calls wait for their turn; further ones stay in the core, in the order in which they came."""

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """What waits, in turn of its owners; what one owner has waits in the order in which it came. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, deque[Item]] = OrderedDict()  # in turn; no queue is empty
        self._count = 0

    def __len__(self) -> int:
        """Count what waits."""
        return self._count

    def add(self, owner: Hashable, item: Item) -> None:
        """Have `item` wait, behind all that its owner has waiting."""
        queue = self._waiting.get(owner)
        if queue is None:
            self._waiting[owner] = deque((item,))
        else:
            queue.append(item)
        self._count += 1

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
