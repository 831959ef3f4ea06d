"""Draws in Python, and answers of them: the reference, and what serves without the kernel."""

from array import array
from collections.abc import Sequence
from itertools import compress, repeat

from gatekeeper_grpc.draws.hashing import first_uint32, new_hash


class PythonDraws:
    """The draws of some flags."""

    at_once = 1_000

    def __init__(self, salts: Sequence[bytes], weights: Sequence[int]) -> None:
        self._flags = [(salt, *divmod(weight, 1_000)) for salt, weight in zip(salts, weights, strict=True)]
        # The shorter rule, if it suffices for all.
        is_whole = not any(thousandths for *_, thousandths in self._flags)
        self._per_cents = [(salt, per_cent) for salt, per_cent, _ in self._flags] if is_whole else None

    def of_one(self, unit: bytes) -> bytes:
        """Return a byte for each flag: 1 if the unit is drawn, else 0."""
        return self.of_many((unit,))

    def of_many(self, units: Sequence[bytes]) -> bytes:
        """Return the rows of `of_one`, one after the other."""
        if self._per_cents is not None:
            return bytes(
                [
                    first_uint32(new_hash(unit + salt).digest())[0] % 100 < per_cent
                    for unit in units
                    for salt, per_cent in self._per_cents
                ]
            )
        # `position_of(unit, salt) < weight`, in two steps: the whole per cents nearly always decide.
        return bytes(
            [
                (slot := (number := first_uint32(new_hash(unit + salt).digest())[0]) % 100) < per_cent
                or (slot == per_cent and number // 100 % 1_000 < thousandths)
                for unit in units
                for salt, per_cent, thousandths in self._flags
            ]
        )


class PythonTemplate:
    """A text in which each value has a place, that of 0 before it is filled."""

    def __init__(self, text: bytes, places: Sequence[int]) -> None:
        self._text, self._places = text, array("I", places)

    def filled(self, values: bytes) -> bytes:
        """Return the text with these values, 0 or 1, at their places."""
        text = bytearray(self._text)
        for place in compress(self._places, values):
            text[place] = 1
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
        return b"".join([piece for parts in zip(heads, units, repeat(self._between), each) for piece in parts])
