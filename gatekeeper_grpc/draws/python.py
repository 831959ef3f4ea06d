"""Draws in Python, and answers of them: the reference, and what serves without the kernel."""

from collections.abc import Sequence
from itertools import chain, compress, repeat

from gatekeeper_grpc.draws.hashing import first_uint32, new_hash, per_cents_of

# A margin is what a weight has above the position of a unit in whole per cents, -99 to 100, and this to make it a byte.
_UNDECIDED = 127
_DRAWN = bytes(margin > _UNDECIDED for margin in range(256))


class PythonDraws:
    """The draws of some flags."""

    at_once = 1_000

    def __init__(self, salts: Sequence[bytes], weights: Sequence[int]) -> None:
        self._salts = salts
        self._bounds = bytes([weight // 1_000 + _UNDECIDED for weight in weights])
        self._thousandths = [weight % 1_000 for weight in weights]
        self._is_whole = not any(self._thousandths)

    def of_one(self, unit: bytes) -> bytes:
        """Return a byte for each flag: 1 if the unit is drawn, else 0."""
        return self.of_many((unit,))

    def of_many(self, units: Sequence[bytes]) -> bytes:
        """Return the rows of `of_one`, one after the other."""
        digests = [new_hash(unit + salt).digest() for unit in units for salt in self._salts]
        # All bytes are subtracted at once, as two integers: none is below 0.
        difference = int.from_bytes(self._bounds * len(units), "big") - int.from_bytes(per_cents_of(digests), "big")
        margins = difference.to_bytes(len(digests), "big")
        drawn = margins.translate(_DRAWN)
        return drawn if self._is_whole else self._refined(drawn, margins, digests)

    def _refined(self, drawn: bytes, margins: bytes, digests: Sequence[bytes]) -> bytes:
        """Let the thousandths decide about those that the whole per cents do not decide."""
        refined = bytearray(drawn)
        at = margins.find(_UNDECIDED)
        while at >= 0:
            position = first_uint32(digests[at])[0] // 100 % 1_000
            refined[at] = position < self._thousandths[at % len(self._thousandths)]
            at = margins.find(_UNDECIDED, at + 1)
        return bytes(refined)


class PythonTemplate:
    """A text in which each value has a slot, that of 0 before it is filled."""

    def __init__(self, text: bytes, slots: Sequence[int]) -> None:
        self._text, self._slots = text, slots

    def filled(self, values: bytes) -> bytes:
        """Return the text with these values, 0 or 1, at their slots."""
        text = bytearray(self._text)
        for slot in compress(self._slots, values):
            text[slot] = 1
        return bytes(text)


class PythonRecords:
    """A record for each unit: the head for its length, the unit, what is between, and its row."""

    def __init__(self, heads: Sequence[bytes], between: bytes) -> None:
        self._heads, self._between = heads, between

    def joined(self, units: Sequence[bytes], rows: bytes) -> bytes:
        """Return the records, one after the other; there are as many rows as units, of the same length."""
        size = len(rows) // max(1, len(units))
        each = [rows[at : at + size] for at in range(0, len(rows), size)] if size else repeat(b"")
        heads = [self._heads[len(unit)] for unit in units]
        return b"".join(chain.from_iterable(zip(heads, units, repeat(self._between), each)))
