"""Figures: what a benchmark returns, how rounds become one, and whether it meets its bar."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.bars import BARS, Bar

Verdict = Literal["", "met", "missed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How thoroughly to measure: the number of rounds, the seconds of each, and the share of the data (0 to 1]."""

    rounds: int = 9
    seconds: float = 1.0
    scale: float = 1.0

    def scaled(self, count: int) -> int:
        """Return this share of a number of things, at least 1."""
        return max(1, round(count * self.scale))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value. `low` and `high` are the spread over `rounds`; `name` is stable, `what` is for people."""

    name: str
    what: str
    value: float
    unit: str
    low: float
    high: float
    rounds: int = 1
    bar: Bar | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the value meets the bar; empty without one."""
        if self.bar is None:
            return ""
        return "met" if self.bar.is_met(self.value) else "missed"


def figure(name: str, what: str, unit: str, value: float) -> Figure:
    """Return a figure that was measured once."""
    return Figure(name=name, what=what, unit=unit, value=value, low=value, high=value, bar=BARS.get(name))


def median_figure(name: str, what: str, unit: str, values: Sequence[float]) -> Figure:
    """Return the median of the rounds, with the smallest and the largest value.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError(f"{name}: no round counts")
    return Figure(
        name=name,
        what=what,
        unit=unit,
        value=statistics.median(values),
        low=min(values),
        high=max(values),
        rounds=len(values),
        bar=BARS.get(name),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of all values do not exceed.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    # 0.07 * 100 is a little above 7.
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def shown(value: float) -> str:
    """Return a value with three digits that count: 1,234,567 as 1.23 M, 0.0123 as 0.0123."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M" if abs(value) < 1e9 else f"{value / 1e6:,.0f} M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
