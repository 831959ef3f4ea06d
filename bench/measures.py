"""All benchmarks by name: what `make bench` measures, and the rest, which `make bench-all` adds."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from bench import bulk, bus, capacity, fairness, load, pauses, preview, propagation, startup, unary
from bench.figures import Effort, Figure

Measure = Callable[[Effort], Iterator[Figure]]
_USUAL: dict[str, Measure] = {
    "unary": unary.measure,
    "ways": unary.measure_ways,
    "bulk": bulk.measure,
    "preview": preview.measure,
    "fairness": fairness.measure,
    "load": load.measure,
    "pauses": pauses.measure,
    "propagation": propagation.measure,
    "capacity": capacity.measure,
    "bus": bus.measure,
    "startup": startup.measure,
}
_MORE: dict[str, Measure] = {
    "bare": unary.measure_bare,
    "line": bulk.measure_line,
    "fairness_control": fairness.measure_control,
}
USUAL = tuple(_USUAL)
ALL: Mapping[str, Measure] = MappingProxyType({**_USUAL, **_MORE})
