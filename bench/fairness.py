"""Unary calls next to bulk evaluation, and who slows down whom: `python -m bench.fairness [seconds] [rounds]`.

Two servers take turns: one as it is, and as the baseline one whose bulk evaluation never pauses (`bench.unpaced`). In a
round, each is called by one interactive client, then streamed to by one bulk client with 5,000 user ids a message, then
both at once. The clients are processes of their own. Compare ratios: all figures are medians of the rounds.
"""

import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.evaluate import FLAGS, create_flags
from bench.processes import Instance, serving
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

IDS_PER_MESSAGE = 5_000
# Between two calls: an interactive client makes some 300 calls a second.
PAUSE_S = 0.002
SERVERS = {"paced": ("gatekeeper_grpc", "serve"), "unpaced": ("bench.unpaced", "serve")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round measured on one server: p99 of unary calls in ms, and user ids a second of the stream."""

    p99_alone: float
    p99_next_to_bulk: float
    bulk_alone: float
    bulk_next_to_unary: float


def call(port: int, seconds: float) -> float:
    """Evaluate one user after the other; returns the p99 latency in ms."""
    latencies: list[float] = []
    with Instance(port=port, pid=0).channel() as channel:
        evaluate, until = EvaluationServiceStub(channel).EvaluateFlags, time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            evaluate(evaluation.EvaluateFlagsRequest(context=EvaluationContext(user_id=f"user-{len(latencies)}")))
            latencies.append((time.perf_counter() - began) * 1_000)
            time.sleep(PAUSE_S)
    return statistics.quantiles(latencies, n=100)[98]


def stream(port: int, seconds: float) -> float:
    """Stream user ids, two messages ahead of the answers; returns how many a second were evaluated."""
    contexts = [EvaluationContext(user_id=f"user-{number}") for number in range(IDS_PER_MESSAGE)]
    body = evaluation.BulkEvaluateFlagsRequest(contexts=contexts).SerializeToString()
    began, answered, ahead = time.perf_counter(), 0, threading.Semaphore(2)

    def messages() -> Iterator[bytes]:
        while time.perf_counter() < began + seconds:
            ahead.acquire()
            yield body

    with Instance(port=port, pid=0).channel() as channel:
        # Bytes in and out: neither is made or read here for each message.
        method: Any = channel.stream_stream("/gatekeeper.v1.EvaluationService/BulkEvaluateFlags")
        responses = method(messages())
        next(responses)  # The header.
        for _ in responses:  # One for each message: 20 flags of 5,000 users take less than 1 MiB.
            ahead.release()
            answered += IDS_PER_MESSAGE
    return answered / (time.perf_counter() - began)


def measure(clients: ProcessPoolExecutor, port: int, seconds: float) -> Round:
    """Measure one round on one server."""
    p99_alone = clients.submit(call, port, seconds).result()
    bulk_alone = clients.submit(stream, port, seconds).result()
    p99, bulk = clients.submit(call, port, seconds), clients.submit(stream, port, seconds)
    return Round(
        p99_alone=p99_alone,
        p99_next_to_bulk=p99.result(),
        bulk_alone=bulk_alone,
        bulk_next_to_unary=bulk.result(),
    )


def main(seconds: float = 3.0, rounds: float = 5) -> None:
    """Measure and print."""
    measured: dict[str, list[Round]] = {name: [] for name in SERVERS}
    with ExitStack() as stack:
        clients = stack.enter_context(ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")))
        ports = {name: _serve(stack, module) for name, module in SERVERS.items()}
        for port in ports.values():
            measure(clients, port, 0.5)
        for _ in range(int(rounds)):
            for name, port in ports.items():
                measured[name].append(measure(clients, port, seconds))
    baseline = statistics.median(each.bulk_alone for each in measured["unpaced"])
    print(f"  one interactive client, one bulk stream of {IDS_PER_MESSAGE} ids a message, {FLAGS} flags")
    for name, all_rounds in measured.items():
        print(f"  {name:<8} {_figures(all_rounds, baseline)}")


def _serve(stack: ExitStack, module: tuple[str, ...]) -> int:
    instance = stack.enter_context(serving(Path(stack.enter_context(tempfile.TemporaryDirectory())), module))
    create_flags(instance)
    return instance.port


def _figures(rounds: list[Round], baseline: float) -> str:
    alone = statistics.median(each.p99_alone for each in rounds)
    next_to_bulk = statistics.median(each.p99_next_to_bulk for each in rounds)
    ratio = statistics.median(each.p99_next_to_bulk / each.p99_alone for each in rounds)
    bulk = statistics.median(each.bulk_alone for each in rounds) / baseline
    shared = statistics.median(each.bulk_next_to_unary for each in rounds) / baseline
    return (
        f"p99 {alone:.1f} ms alone, {next_to_bulk:.1f} ms next to bulk: {ratio:.1f} times (promised: 3);"
        f" bulk {bulk:.2f} alone, {shared:.2f} next to unary, of {baseline:,.0f} users/s unpaced and alone"
    )


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
