"""Tables of the cost model for the capacity page: what loads need, and what instances cost PostgreSQL."""

from collections.abc import Iterable, Sequence
from dataclasses import fields

from bench.bus_model import HEARTBEAT_EVERY_S, announcement_ms
from bench.cost_model import Costs, Demand, Need
from bench.figures import shown
from bench.results import Result

LOADS = (
    ("1,000 calls/s", Demand(calls_per_s=1_000, flags=1_000)),
    ("5,000 calls/s", Demand(calls_per_s=5_000, flags=1_000)),
    ("20,000 calls/s", Demand(calls_per_s=20_000, flags=1_000)),
    ("5,000 calls/s, 100,000 contexts/s", Demand(calls_per_s=5_000, contexts_per_s=100_000, flags=1_000)),
    ("5,000 calls/s, 10,000 flags, 1,000,000 targets", Demand(calls_per_s=5_000, flags=10_000, targets=1_000_000)),
)
INSTANCES = (2, 10, 100, 300, 1_000)
CHANGES_PER_S = 1.0


def costs_of(result: Result) -> Costs:
    """Return the constants that a run measured.

    Raises:
        LookupError: It measured none.
    """
    found = {field.name: result.find(f"capacity.{field.name}") for field in fields(Costs)}
    if missing := [name for name, each in found.items() if each is None]:
        raise LookupError(f"the result has no {', '.join(missing)}")
    return Costs(**{name: each.value for name, each in found.items() if each})


def loads(result: Result) -> str:
    """Return what some loads need."""
    head = ("load, 20 flags a call and a context", "processes", "cores used", "MiB each", "connections at most")
    return _markdown(head, [(name, *_cells(costs_of(result).need(demand))) for name, demand in LOADS])


def _cells(need: Need) -> Sequence[str]:
    return f"{need.processes}", f"{need.cores:.1f}", f"{need.mib_each:,.0f}", f"{need.max_connections:,}"


def instances(result: Result) -> str:
    """Return what so many instances cost PostgreSQL."""
    head = (
        "instances",
        "connections at rest",
        "statements/s at rest",
        f"statements/s at {CHANGES_PER_S:g} change/s",
        "cores for heartbeats",
        f"cores for reads at {CHANGES_PER_S:g} change/s",
    )
    return _markdown(head, [_instances_row(result, count) for count in INSTANCES])


def _instances_row(result: Result, count: int) -> Sequence[str]:
    costs = costs_of(result)
    at_rest = count * costs.statements
    heartbeats = count / HEARTBEAT_EVERY_S * announcement_ms(result, count) / 1_000
    reads = result.find("bus.reads")
    cores = CHANGES_PER_S * count * reads.value / 1_000 if reads else float("nan")
    changed = at_rest + CHANGES_PER_S * count * costs.statements_per_change
    return [f"{count:,}", *map(shown, (count * costs.connections, at_rest, changed, heartbeats, cores))]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
