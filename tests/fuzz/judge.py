"""Judges fuzzed calls: their statuses and times, the state that they leave, and the memory that they cost."""

import threading
from collections import Counter
from dataclasses import dataclass, field

import grpc

from tests.fuzz.calls import Call

# On a machine that is busy with something else; a call that waits for a lock or for itself takes longer.
MAX_CALL_S = 20.0
LEAST_OK = 0.4
"""The share of calls that must end OK: else the calls do not get deep enough to find anything."""
MAX_GROWTH_BYTES = 32 << 20
"""How much the server's memory may grow after the first tenth of the calls, which fill its pools and caches."""
_KEPT = 20
_NEVER = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNAVAILABLE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call ended."""

    call: Call
    code: grpc.StatusCode
    details: str
    took_s: float


@dataclass(slots=True)
class Verdict:
    """What was seen so far. Several clients may tell it of outcomes at once."""

    calls: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    by_method: dict[str, Counter[str]] = field(default_factory=dict)
    refusals: Counter[str] = field(default_factory=Counter)
    """Why honest calls failed: to find rules of the generator that are wrong."""
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0
    slowest_s: float = 0.0
    memory_bytes: list[int] = field(default_factory=list)
    """After each part of the calls."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: Outcome) -> None:
        """Judge one call."""
        with self._lock:
            self.calls += 1
            self.codes[outcome.code.name] += 1
            self.by_method.setdefault(outcome.call.method.name, Counter())[outcome.code.name] += 1
            self.slowest_s = max(self.slowest_s, outcome.took_s)
            if outcome.call.is_honest and outcome.code is not grpc.StatusCode.OK:
                self.refusals[f"{outcome.call.method.name}: {outcome.code.name}: {outcome.details[:90]}"] += 1
        for fault in _faults(outcome):
            self.find(f"{fault}: {outcome.call}")

    def find(self, fault: str) -> None:
        """Note a fault."""
        with self._lock:
            self.fault_count += 1
            if len(self.faults) < _KEPT:
                self.faults.append(fault)

    def conclude(self) -> None:
        """Judge all calls together."""
        if self.share_ok() < LEAST_OK:
            self.find(f"only {self.share_ok():.0%} of the calls ended OK")
        if self.growth_bytes() > MAX_GROWTH_BYTES:
            self.find(f"the server's memory grew by {self.growth_bytes() >> 20} MiB")

    def share_ok(self) -> float:
        """The share of calls that ended OK."""
        return self.codes["OK"] / max(1, self.calls)

    def growth_bytes(self) -> int:
        """How much larger the memory is than after the first part."""
        return self.memory_bytes[-1] - self.memory_bytes[0] if self.memory_bytes else 0

    def __str__(self) -> str:
        codes = ", ".join(f"{count:,} {code}" for code, count in self.codes.most_common())
        return (
            f"{self.calls:,} calls ({codes}); the slowest took {self.slowest_s:.1f} s; the server's memory grew by"
            f" {self.growth_bytes() / (1 << 20):.0f} MiB; {self.fault_count} faults"
        )


def _faults(outcome: Outcome) -> list[str]:
    faults = []
    if outcome.code in _NEVER:
        faults.append(f"{outcome.code.name} ({outcome.details})")
    if outcome.code is not grpc.StatusCode.OK and not outcome.details:
        faults.append(f"{outcome.code.name} without a word")
    if outcome.took_s > MAX_CALL_S:
        faults.append(f"took {outcome.took_s:.1f} s")
    return faults
