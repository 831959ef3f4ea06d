"""Decides whose message is received next: few at once, because each may take as many bytes as a message may have.

Not thread-safe and without I/O: `pending_calls` asks it, and acts.
"""

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Generic, NamedTuple, TypeVar

from gatekeeper_grpc.transport.arrival import Owner

Item = TypeVar("Item")


class Punctuality(IntEnum):
    """What is known of an owner; the higher one is served first."""

    SUSPECT = 0
    """Its last message did not arrive in time while others waited."""
    UNKNOWN = 1
    PROVEN = 2
    """Its last message arrived."""


# To look up a member of an enum takes longer than to compare it.
_SUSPECT, _UNKNOWN, _PROVEN = Punctuality
_BEST_FIRST = (_PROVEN, _UNKNOWN, _SUSPECT)
# How long a message may take while others wait. A large one over a slow line takes seconds: the proven get more time.
_MAY_TAKE_S = {Punctuality.SUSPECT: 0.1, Punctuality.UNKNOWN: 0.25, Punctuality.PROVEN: 1.0}
SHORTEST_S = min(_MAY_TAKE_S.values())
"""No message has to make way earlier."""

_MAX_REMEMBERED = 4_096


class _Receiving(NamedTuple):
    owner: Owner
    punctuality: Punctuality
    since: float


class ReceiveSlots(Generic[Item]):
    """The slots of a server. Each method takes constant time, but `overdue`, which looks at all slots.

    One owner takes half of the slots at most, and so do all suspects together: the rest is free for others at once.
    Those who wait take turns by owner.

    Args:
        count: How many messages may be received at once.
        max_waiting: How many items may wait; one owner has half of them at most.
        clock: Monotonic seconds.
    """

    def __init__(self, count: int, *, max_waiting: int, clock: Callable[[], float]) -> None:
        self._count = count
        self._share = max(1, count // 2)
        self._max_waiting = max_waiting
        self._clock = clock
        self._receiving: dict[Item, _Receiving] = {}
        self._by_owner: dict[Owner, int] = {}  # none is 0
        self._suspects = 0
        self._waiting: dict[Punctuality, dict[Owner, dict[Item, None]]] = {
            punctuality: {} for punctuality in Punctuality
        }
        self._owner_of: dict[Item, Owner] = {}  # of those that wait
        self._remembered: dict[Owner, Punctuality] = {}  # the oldest is forgotten first

    @property
    def receiving(self) -> int:
        """How many slots are taken."""
        return len(self._receiving)

    @property
    def waiting(self) -> int:
        """How many items wait for a slot."""
        return len(self._owner_of)

    def request(self, item: Item, owner: Owner) -> bool:
        """Return whether `item` has a slot; otherwise it waits for its turn."""
        punctuality = self._punctuality(owner)
        if self._may_start(owner, punctuality):
            self._start(item, owner, punctuality)
            return True
        self._waiting[punctuality].setdefault(owner, {})[item] = None
        self._owner_of[item] = owner
        return False

    def remove(self, item: Item) -> bool:
        """Forget an item that waits; return whether it did."""
        owner = self._owner_of.pop(item, None)
        if owner is None:
            return False
        waiting = self._waiting[self._punctuality(owner)]
        del waiting[owner][item]
        if not waiting[owner]:
            del waiting[owner]
        return True

    def remove_surplus(self, owner: Owner) -> Item | None:
        """Forget the oldest item that waits, of this owner or of all, if there is one too many; return it."""
        if len(self._owner_of) <= self._max_waiting // 2:  # As nearly always.
            return None
        of_owner = self._waiting[self._punctuality(owner)].get(owner, {})
        is_surplus = len(of_owner) > max(1, self._max_waiting // 2), len(self._owner_of) > self._max_waiting
        if not any(is_surplus):
            return None
        oldest = next(iter(of_owner if is_surplus[0] else self._owner_of))
        self.remove(oldest)
        return oldest

    def release(self, item: Item, *, is_received: bool) -> None:
        """Free the slot of `item`."""
        receiving = self._receiving.pop(item, None)
        if receiving is None:
            return
        if left := self._by_owner[receiving.owner] - 1:
            self._by_owner[receiving.owner] = left
        else:
            del self._by_owner[receiving.owner]
        self._suspects -= receiving.punctuality is _SUSPECT
        if is_received:
            self._note(receiving.owner, _PROVEN)

    def start_next(self) -> Item | None:
        """Give a free slot to the item whose turn it is, and return the item; None if nobody may have one."""
        if len(self._receiving) >= self._count:
            return None
        for punctuality in _BEST_FIRST:
            # At most two owners can hold half of the slots, so this loop is short.
            for owner in self._waiting[punctuality]:
                if self._may_start(owner, punctuality):
                    return self._start_waiting(owner, punctuality)
                if punctuality is _SUSPECT and self._suspects >= self._share:
                    break
        return None

    def overdue(self) -> list[Item]:
        """Return what must make way for those who wait, and call their owners suspect."""
        best = max((punctuality for punctuality in Punctuality if self._waiting[punctuality]), default=None)
        if best is None:
            return []
        now = self._clock()
        found = [
            (item, one.owner)
            for item, one in self._receiving.items()
            if one.punctuality <= best and now - one.since >= _MAY_TAKE_S[one.punctuality]
        ]
        for item, owner in found:
            self._receiving[item] = self._receiving[item]._replace(since=math.inf)  # Not a second time.
            self._note(owner, _SUSPECT)
        return [item for item, _ in found]

    def _punctuality(self, owner: Owner) -> Punctuality:
        return self._remembered.get(owner, _UNKNOWN)

    def _may_start(self, owner: Owner, punctuality: Punctuality) -> bool:
        return (
            len(self._receiving) < self._count
            and self._by_owner.get(owner, 0) < self._share
            and (punctuality is not _SUSPECT or self._suspects < self._share)
        )

    def _start(self, item: Item, owner: Owner, punctuality: Punctuality) -> None:
        self._receiving[item] = _Receiving(owner, punctuality, self._clock())
        self._by_owner[owner] = self._by_owner.get(owner, 0) + 1
        self._suspects += punctuality is _SUSPECT

    def _start_waiting(self, owner: Owner, punctuality: Punctuality) -> Item:
        items = self._waiting[punctuality].pop(owner)
        item = next(iter(items))
        del items[item], self._owner_of[item]
        if items:  # The owner goes to the end of its line.
            self._waiting[punctuality][owner] = items
        self._start(item, owner, punctuality)
        return item

    def _note(self, owner: Owner, punctuality: Punctuality) -> None:
        """Remember the punctuality of an owner, and move those of its items that wait."""
        before = self._punctuality(owner)
        if before is punctuality:
            return
        if items := self._waiting[before].pop(owner, None):
            self._waiting[punctuality][owner] = items
        self._remembered.pop(owner, None)
        self._remembered[owner] = punctuality
        if len(self._remembered) > _MAX_REMEMBERED:
            self._forget(next(iter(self._remembered)))

    def _forget(self, owner: Owner) -> None:
        if items := self._waiting[self._remembered.pop(owner)].pop(owner, None):
            self._waiting[_UNKNOWN][owner] = items
