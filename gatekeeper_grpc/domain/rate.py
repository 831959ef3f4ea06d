"""A rate limit as an operator writes it: how many calls in a second or minute, and how many at once."""

import re
from dataclasses import dataclass
from typing import Final

_FORM: Final = re.compile(r"(?P<count>\d{1,9})/(?P<unit>s|min)(?: burst (?P<burst>\d{1,9}))?")
_SECONDS: Final = {"s": 1, "min": 60}
_HOW: Final = "must be a rate such as 50/s or '5/min burst 20', or off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`burst` calls at once, and then `count` in each `unit`. Made by `parse`, which checks them.

    A budget that is used up is full again after `burst` times `interval_s`.
    """

    count: int
    unit: str
    """"s" or "min"."""
    burst: int

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Read "50/s" or "5/min burst 20". Without a burst, as many calls are allowed at once as in one unit.

        Raises:
            ValueError: It is neither, or one of its numbers is 0.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(_HOW)
        count, burst = int(found["count"]), int(found["burst"] or found["count"])
        if not count or not burst:
            raise ValueError(f"{_HOW}, with numbers above 0")
        return cls(count=count, unit=found["unit"], burst=burst)

    @property
    def interval_s(self) -> float:
        """After how long one more call is allowed."""
        return _SECONDS[self.unit] / self.count

    def __str__(self) -> str:
        text = f"{self.count}/{self.unit}"
        return text if self.burst == self.count else f"{text} burst {self.burst}"
