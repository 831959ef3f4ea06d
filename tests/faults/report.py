"""The report of the fault tests: one row for each fault and each twin, printed at the end and kept in a file."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.faults.figures import BUSY_S, FAULT_S, LOAD
from tests.faults.load import Load

_FAULTS = ("promise", "fault", "duration", "evaluations sent", "failed", "largest staleness", "recovery time", "also")
_TWINS = ("promise", "with this mitigation off", "the same test sees")


@dataclass(slots=True, kw_only=True)
class Row:
    """One fault. What was not measured stays None; `also` is for whatever else was."""

    promise: str
    fault: str
    duration_s: float = 0.0
    sent: int | None = None
    failed: int | None = None
    staleness_s: float | None = None
    recovery_s: float | None = None
    also: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row's cells, in the order of the table's columns."""
        return (
            self.promise,
            self.fault,
            _seconds(self.duration_s),
            _number(self.sent),
            _number(self.failed),
            _seconds(self.staleness_s),
            _seconds(self.recovery_s),
            self.also,
        )


class Report:
    """Collects rows."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.twins: list[tuple[str, str, str]] = []

    @contextmanager
    def fault(self, promise: str, fault: str, load: Load | None = None) -> Iterator[Row]:
        """Measure what the block does, and take over what a load has counted when it is over."""
        row = Row(promise=promise, fault=fault)
        self.rows.append(row)
        began = time.monotonic()
        try:
            yield row
        finally:
            row.duration_s = time.monotonic() - began
            if load is not None:
                row.sent, row.failed, row.staleness_s = load.sent, load.failed.total(), load.staleness_s

    def twin(self, promise: str, mitigation: str, seen: str) -> None:
        """Note what a test saw with a mitigation off."""
        self.twins.append((promise, mitigation, seen))

    def markdown(self) -> str:
        """Both tables, and under which conditions they were made."""
        conditions = (
            f"Faults of {FAULT_S:.0f} s, on {os.cpu_count()} cores; load before the start: {LOAD:.1f} processes a core;"
            f" allowance on top of promised seconds: {BUSY_S:.1f} s."
        )
        faults = _table(_FAULTS, [row.cells() for row in self.rows])
        return "\n\n".join([conditions, faults, _table(_TWINS, self.twins)])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *sorted(rows, key=lambda row: row[0])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
