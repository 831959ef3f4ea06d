"""A hash of a set of people that follows each change of the set without reading the rest of it.

The sum of a hash of each element, modulo 2**2048. Its order does not matter, and adding or removing an element costs
one hash. To find two sets with the same sum takes about 2**90 steps (Wagner's generalised birthday attack); a sum
modulo 2**256 would take a minute.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

SUM_BYTES = 256
_MODULUS = 1 << (8 * SUM_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHash:
    """The hash of a set: how many elements it has, and the sum of their hashes modulo 2**2048. Default: empty."""

    count: int = 0
    total: int = 0

    @classmethod
    def from_state(cls, count: int, state: bytes) -> "SetHash":
        """Rebuild the hash whose `state` was stored."""
        return cls(count=count, total=int.from_bytes(state))

    @property
    def state(self) -> bytes:
        """The sum, as it is stored next to the set: 256 bytes."""
        return self.total.to_bytes(SUM_BYTES)

    def changed(self, *, added: Iterable[bytes] = (), removed: Iterable[bytes] = ()) -> "SetHash":
        """Return the hash of the set with and without these elements.

        Args:
            added: Elements that it lacked.
            removed: Elements that it had.
        """
        count, total = self.count, self.total
        for element in added:
            count, total = count + 1, total + _hash(element)
        for element in removed:
            count, total = count - 1, total - _hash(element)
        return SetHash(count=count, total=total % _MODULUS)

    def document(self) -> dict[str, Any]:
        """Return the hash as JSON values, for the audit log."""
        return {"count": self.count, "hash": hashlib.sha256(self.state).hexdigest()}


EMPTY = SetHash()
"""The hash of an empty set."""


def member_element(subject_id: UUID) -> bytes:
    """Return a member of a segment as an element to hash."""
    return subject_id.bytes


def target_element(subject_id: UUID, variant: str) -> bytes:
    """Return a target of a flag as an element to hash."""
    return subject_id.bytes + variant.encode()


def _hash(element: bytes) -> int:
    return int.from_bytes(hashlib.shake_128(element).digest(SUM_BYTES))
