"""What an evaluation costs: `python -m bench.evaluate [seconds]`.

One server process with 20 flags, one client process with 8 threads on the same machine. The baseline is the same call
with one unknown flag key: all of gRPC and of our interceptors, and nothing to evaluate. The ratio shows what evaluation
adds.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.processes import Instance, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

FLAGS = 20
CLIENT_THREADS = 8


def create_flags(instance: Instance, count: int = FLAGS) -> None:
    """Create `count` enabled flags with a rollout of 50 %."""
    metadata = log_in(instance)
    with instance.channel() as channel:
        for number in range(count):
            flag = flag_pb2.Flag(key=f"flag-{number}", enabled=True, rollout_percentage=50)
            AdminServiceStub(channel).CreateFlag(admin.CreateFlagRequest(flag=flag), metadata=metadata)


def calls_per_s(
    instance: Instance, question: Callable[[int], evaluation.EvaluateFlagsRequest], seconds: float
) -> tuple[float, float]:
    """Call from `CLIENT_THREADS` threads for `seconds`; returns calls per second and the p99 latency in ms."""
    latencies: list[list[float]] = [[] for _ in range(CLIENT_THREADS)]
    until = time.perf_counter() + seconds

    def ask(mine: list[float]) -> None:
        with instance.channel() as channel:
            evaluate = EvaluationServiceStub(channel).EvaluateFlags
            while (began := time.perf_counter()) < until:
                evaluate(question(len(mine)))
                mine.append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_latencies = sorted(latency for mine in latencies for latency in mine)
    return len(all_latencies) / seconds, all_latencies[int(len(all_latencies) * 0.99)] * 1_000


def main(seconds: float = 5.0) -> None:
    """Measure and print."""
    questions = {
        "nothing to evaluate": lambda turn: _question(turn, flag_keys=["no-such-flag"]),
        f"{FLAGS} flags": _question,
    }
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as instance:
        create_flags(instance)
        calls_per_s(instance, _question, 1.0)
        rates = {}
        for name, question in questions.items():
            rates[name], p99_ms = calls_per_s(instance, question, seconds)
            print(f"  {name:<22} {rates[name]:8.0f} calls/s   p99 {p99_ms:.1f} ms")
    baseline, full = rates.values()
    print(f"  ratio {full / baseline:.2f} of the baseline")


def _question(turn: int, **fields: object) -> evaluation.EvaluateFlagsRequest:
    return evaluation.EvaluateFlagsRequest(context=EvaluationContext(user_id=f"user-{turn}"), **fields)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
