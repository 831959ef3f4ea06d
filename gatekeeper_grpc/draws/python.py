"""Draws in Python, and answers of them: the reference, and what serves without the kernel."""

from collections.abc import Sequence
from itertools import chain, compress, cycle, repeat

from gatekeeper_grpc.draws.hashing import first_uint32s, new_hash


class PythonDraws:
    """The draws of some flags."""

    at_once = 1_000

    def __init__(self, salts: Sequence[bytes], weights: Sequence[int]) -> None:
        self._salts = salts
        self._weights = [divmod(weight, 1_000) for weight in weights]
        # The shorter rule, if it suffices for all.
        is_whole = not any(thousandths for _, thousandths in self._weights)
        self._per_cents = [per_cent for per_cent, _ in self._weights] if is_whole else None

    def of_one(self, unit: bytes) -> bytes:
        """Return a byte for each flag: 1 if the unit is drawn, else 0."""
        return self.of_many((unit,))

    def of_many(self, units: Sequence[bytes]) -> bytes:
        """Return the rows of `of_one`, one after the other."""
        numbers = first_uint32s([new_hash(unit + salt).digest() for unit in units for salt in self._salts])
        if self._per_cents is not None:
            return bytes([number % 100 < per_cent for number, per_cent in zip(numbers, cycle(self._per_cents))])
        # `position_of(unit, salt) < weight`, in two steps: the whole per cents nearly always decide.
        return bytes(
            [
                (slot := number % 100) < per_cent or (slot == per_cent and number // 100 % 1_000 < thousandths)
                for number, (per_cent, thousandths) in zip(numbers, cycle(self._weights))
            ]
        )


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
