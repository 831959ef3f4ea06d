"""What traces cost an evaluation: `python -m bench.traces [calls]`.

In one process, without gRPC, per call and in time of the processor, for `EvaluateFlags` of 20 flags: without an
endpoint; with one and a call that is not in the sample; and with one that is, up to the queue of the exporter, whose
own thread is in the figure as far as it runs at the same time.
"""

import contextvars
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from bench.instrumentation import servicer
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_grpc.instrumentation.spans import TRACES
from gatekeeper_grpc.interceptors.tracing import begin_trace
from gatekeeper_grpc.operations.otlp import Otlp
from tests.support.otlp import receiving
from tests.support.servers import settings_for_tests

METHOD = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
ROUNDS = 100


def call(evaluate: Callable[..., object], request: EvaluateFlagsRequest) -> None:
    """Do what a call does that may be traced."""
    trace = begin_trace(METHOD, (), arrived_at=time.monotonic()) if TRACES.sink is not None else None
    evaluate(request, None)
    if trace is not None:
        TRACES.end_call(trace, error="", attributes={"rpc.response.status_code": grpc.StatusCode.OK.name})


@contextmanager
def tracing(ratio: float) -> Iterator[None]:
    """Trace this share of the calls for the length of a block."""
    with receiving() as receiver:
        settings = settings_for_tests(otel_exporter_otlp_endpoint=receiver.endpoint, otel_traces_sampler_arg=ratio)
        sending = Otlp(settings)
        sending.start()
        try:
            yield
        finally:
            sending.close(timeout_s=5)


def fastest(act: Callable[[], object], calls: int) -> float:
    """Return microseconds a call in the fastest round, because others use the machine as well."""
    best = math.inf
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(calls):
            contextvars.copy_context().run(act)  # As grpcio does.
        best = min(best, (time.process_time() - began) / calls * 1e6)
        time.sleep(0.01)  # Lets the exporter send.
    return best


def main(calls: int = 50) -> None:
    """Measure and print."""
    evaluate, request = servicer().EvaluateFlags, EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))

    def act() -> None:
        call(evaluate, request)

    alone = fastest(lambda: evaluate(request, None), calls)  # type: ignore[arg-type] # It reads nothing of the context.
    print(f"  evaluation alone {alone:.2f} us; in addition, without an endpoint {fastest(act, calls) - alone:+.2f} us")
    for ratio, which in ((0.0, "is not in the sample"), (1.0, "is in the sample")):
        with tracing(ratio):
            print(f"  with an endpoint, a call that {which}: {fastest(act, calls) - alone:+.2f} us")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
