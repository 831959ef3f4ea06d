"""Unary calls next to bulk evaluation, and who slows down whom.

In a round, a server is called by one interactive client, then streamed to by one bulk client with 5,000 user ids a
message, then both at once. The clients are processes of their own. `fairness_control` does the same with a server whose
bulk evaluation never pauses (`bench.unpaced`).
"""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from bench.bulk import clients, contexts_by_id, message_of, stream
from bench.figures import Effort, Figure, median_figure, percentile
from bench.processes import FLAGS, SERVE, Instance, flags_served
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

# Between two calls: an interactive client makes some 300 calls a second.
PAUSE_S = 0.002
# So that a round of a second has the calls that a p99 needs.
SECONDS_EACH = 2.0
WARM_UP_S = 0.5
MESSAGE = message_of(contexts_by_id())


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round measured: p99 of unary calls in ms, and user ids a second of the stream."""

    p99_alone: float
    p99_next_to_bulk: float
    bulk_alone: float
    bulk_next_to_unary: float


def call(port: int, seconds: float) -> float:
    """Evaluate one user after the other; returns the p99 latency in ms."""
    latencies: list[float] = []
    with Instance(port=port).channel() as channel:
        evaluate, until = EvaluationServiceStub(channel).EvaluateFlags, time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            evaluate(evaluation.EvaluateFlagsRequest(context=EvaluationContext(user_id=f"user-{len(latencies)}")))
            latencies.append((time.perf_counter() - began) * 1_000)
            time.sleep(PAUSE_S)
    return percentile(latencies, 0.99)


def measure_round(processes: ProcessPoolExecutor, port: int, seconds: float) -> Round:
    """Measure one round on one server."""
    p99_alone = processes.submit(call, port, seconds).result()
    bulk_alone, _ = processes.submit(stream, port, seconds, MESSAGE).result()
    p99, bulk = processes.submit(call, port, seconds), processes.submit(stream, port, seconds, MESSAGE)
    return Round(
        p99_alone=p99_alone,
        p99_next_to_bulk=p99.result(),
        bulk_alone=bulk_alone,
        bulk_next_to_unary=bulk.result()[0],
    )


def measure(effort: Effort) -> Iterator[Figure]:
    """Measure a server as it is."""
    yield from _measured(effort, SERVE, "fairness", "")


def measure_control(effort: Effort) -> Iterator[Figure]:
    """Measure a server whose bulk evaluation never pauses."""
    yield from _measured(effort, ("bench.unpaced", "serve"), "fairness_control", " that never pauses")


def _measured(effort: Effort, module: tuple[str, ...], name: str, which: str) -> Iterator[Figure]:
    seconds = SECONDS_EACH * effort.seconds
    with flags_served(FLAGS, module) as instance, clients() as processes:
        measure_round(processes, instance.port, WARM_UP_S)
        rounds = [measure_round(processes, instance.port, seconds) for _ in range(effort.rounds)]
    p99 = [each.p99_next_to_bulk / each.p99_alone for each in rounds]
    kept = [each.bulk_next_to_unary / each.bulk_alone for each in rounds]
    yield median_figure(f"{name}.p99", f"unary p99 next to one bulk stream{which}", "x alone", p99)
    yield median_figure(f"{name}.p99_ms", "the same, in ms", "ms", [each.p99_next_to_bulk for each in rounds])
    yield median_figure(f"{name}.bulk", f"rate that the bulk stream{which} keeps", "x alone", kept)
