"""Costs of a process, and a result, with round numbers."""

from bench.cost_model import Costs
from bench.figures import figure, median_figure
from bench.results import Machine, Result

COSTS = Costs(
    call_us=100,
    flag_us=1,
    context_us=2,
    decision_us=0.5,
    rest_cores=0.01,
    process_mib=80,
    flags_mib=10,
    targets_mib=60,
    connections=4,
    statements=2,
    statements_per_change=3,
)
RESULT = Result(
    commit="0123456789",
    time="2026-01-02T03:04:05+00:00",
    machine=Machine(cpu="a cpu", cores=2, python="3.11.1", grpcio="1.85.1", load=0.1),
    seconds=120,
    figures=(median_figure("unary.1.cpu", "a call", "x empty", [0.8, 0.95, 2.0]), figure("bus.x", "bus", "ms", 1)),
)
