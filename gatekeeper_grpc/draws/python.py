"""Draws in Python: the reference, and what serves without the kernel."""

from collections.abc import Sequence

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
