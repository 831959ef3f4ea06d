"""The bars: what figures of `make bench` must reach (gates), and what they should reach (aims)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["gate", "aim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A limit that a figure must keep (`is_maximum`) or reach."""

    limit: float
    kind: Kind
    is_maximum: bool

    def is_met(self, value: float) -> bool:
        """Whether a value keeps or reaches the limit."""
        return value <= self.limit if self.is_maximum else value >= self.limit


def _at_most(limit: float, kind: Kind = "gate") -> Bar:
    return Bar(limit=limit, kind=kind, is_maximum=True)


def _at_least(limit: float, kind: Kind = "gate") -> Bar:
    return Bar(limit=limit, kind=kind, is_maximum=False)


BARS: Mapping[str, Bar] = MappingProxyType(
    {
        "unary.1.cpu": _at_most(0.8),
        "unary.20.cpu": _at_most(0.75),
        "unary.200.cpu": _at_most(0.8),
        "unary.1.rate": _at_least(1.2),
        "unary.20.rate": _at_least(1.4),
        "unary.200.rate": _at_least(1.8),
        "unary.1000.rate": _at_least(1.3),
        "python.1.cpu": _at_most(0.9),
        "python.20.cpu": _at_most(0.9),
        "python.200.cpu": _at_most(1.6),
        "python.1.rate": _at_least(1.0),
        "python.20.rate": _at_least(0.94),
        "python.200.rate": _at_least(0.8),
        "python.1000.rate": _at_least(0.3),
        "unary.20.p99_at_half_load": _at_most(1.0, "aim"),
        "bulk.decisions": _at_least(12e6),
        "bulk.python.decisions": _at_least(2.2e6),
        "bulk.attributes.decisions": _at_least(1e6, "aim"),
        "preview.rate": _at_least(0.5),
        "fairness.p99": _at_most(3.0),
        "fairness.bulk": _at_least(0.5),
        "load.first": _at_most(6.0),
        "load.merge": _at_most(100.0),
        "pauses.longest": _at_most(5.0),
        "propagation.p50": _at_most(5.0, "aim"),
        "propagation.p99": _at_most(10.0, "aim"),
        "propagation.update": _at_most(8.0, "aim"),
        "capacity.check": _at_most(0.25, "aim"),
        "startup.help": _at_most(2.0),
        "startup.evaluate": _at_most(1.5),
        "startup.list": _at_most(1.5),
    }
)
