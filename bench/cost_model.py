"""The cost model: from what a service is asked for to processes, cores, memory, and what PostgreSQL has to bear.

A process uses one core at most. So the number of processes follows from the processor time of what is asked, and each
has all flags and targets in memory.
"""

import math
from dataclasses import dataclass

# The share of a core that is used at most: above it, queues grow fast.
UTILISATION = 0.6
# One may be replaced, or lost, and the others still answer.
MIN_PROCESSES = 2
OUTSIDE_THE_POOL = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one process costs. `_us` are microseconds of processor time, `_mib` are MiB of memory.

    Attributes:
        call_us: A call of EvaluateFlags, without its flags.
        flag_us: Each flag of a call.
        context_us: A context of BulkEvaluateFlags, without its flags.
        decision_us: Each flag of a context.
        rest_cores: The share of a core that a process uses at rest.
        process_mib: A process without flags.
        flags_mib: 10,000 flags.
        targets_mib: 1,000,000 targets.
        connections: To PostgreSQL, at rest.
        statements: A second, at rest.
        statements_per_change: For a change that another process made.
    """

    call_us: float
    flag_us: float
    context_us: float
    decision_us: float
    rest_cores: float
    process_mib: float
    flags_mib: float
    targets_mib: float
    connections: float
    statements: float
    statements_per_change: float

    def cores(self, demand: "Demand") -> float:
        """Return the processor time a second, of one process at rest and of what is asked of all."""
        call_us = self.call_us + demand.flags_per_call * self.flag_us
        context_us = self.context_us + demand.flags_per_context * self.decision_us
        used_us = demand.calls_per_s * call_us + demand.contexts_per_s * context_us
        return self.rest_cores + used_us / 1e6

    def mib(self, demand: "Demand") -> float:
        """Return the memory of each process."""
        return self.process_mib + demand.flags / 1e4 * self.flags_mib + demand.targets / 1e6 * self.targets_mib

    def need(self, demand: "Demand") -> "Need":
        """Return what is needed."""
        cores = self.cores(demand)
        # What each process uses at rest is taken from its share.
        processes = math.ceil((cores - self.rest_cores) / (UTILISATION - self.rest_cores))
        processes = max(MIN_PROCESSES, processes)
        each_s = self.statements + demand.changes_per_s * self.statements_per_change
        return Need(
            processes=processes,
            cores=cores + (processes - 1) * self.rest_cores,
            mib_each=self.mib(demand),
            connections=round(processes * self.connections),
            max_connections=processes * (demand.pool_size + OUTSIDE_THE_POOL),
            statements_per_s=processes * each_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of all processes together, and what each has in memory."""

    calls_per_s: float = 0
    flags_per_call: float = 20
    contexts_per_s: float = 0
    flags_per_context: float = 20
    flags: float = 0
    targets: float = 0
    changes_per_s: float = 0
    pool_size: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a demand needs. `cores` are used on average; each process needs one to itself at times."""

    processes: int
    cores: float
    mib_each: float
    connections: int
    max_connections: int
    statements_per_s: float


def line_through(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Return the value at 0 and the slope of the line through two points.

    Raises:
        ValueError: Both have the same place.
    """
    (x1, y1), (x2, y2) = first, second
    if x1 == x2:
        raise ValueError("two points at one place make no line")
    slope = (y2 - y1) / (x2 - x1)
    return y1 - x1 * slope, slope
