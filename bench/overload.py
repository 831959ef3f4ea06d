"""Far more calls than workers: `python -m bench.overload [seconds]`.

One client process keeps 2,000 and then 4,000 calls in flight over 20 and 40 connections. It prints how they end, how
long the longest one took, and how much the server grew. Nothing may end as CANCELLED.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

from bench.processes import Instance, serving
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

CALLS_A_CONNECTION = 100
QUESTION = evaluation.EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))
_FLOOD = "import sys; from bench.overload import flood; flood(*map(int, sys.argv[1:3]), float(sys.argv[3]))"


class _Ended:
    """How calls ended: codes, and the longest duration."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both
        self.codes: Counter[str] = Counter()
        self.longest_s = 0.0

    def note(self, code: grpc.StatusCode, took_s: float) -> None:
        with self._lock:
            self.codes[code.name] += 1
            self.longest_s = max(self.longest_s, took_s)


def flood(port: int, connections: int, seconds: float) -> None:
    """Keep 100 calls in flight on each connection for `seconds`, and print how they ended."""
    ended, until = _Ended(), time.monotonic() + seconds
    with ExitStack() as stack:
        channels = [stack.enter_context(Instance(port=port, pid=0).channel()) for _ in range(connections)]
        threads = [threading.Thread(target=_keep_busy, args=(channel, ended, until)) for channel in channels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"{dict(ended.codes)}, longest {ended.longest_s:.2f} s")


def _keep_busy(channel: grpc.Channel, ended: _Ended, until: float) -> None:
    evaluate = EvaluationServiceStub(channel).EvaluateFlags
    free = threading.Semaphore(CALLS_A_CONNECTION)

    def call() -> None:
        began = time.monotonic()

        def done(finished: Any) -> None:
            ended.note(finished.code(), time.monotonic() - began)
            free.release()

        evaluate.future(QUESTION, timeout=60.0).add_done_callback(done)

    while time.monotonic() < until:
        free.acquire()
        call()
    for _ in range(CALLS_A_CONNECTION):
        free.acquire()


def main(seconds: float = 5.0) -> None:
    """Measure and print."""
    for connections in (20, 40):
        with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as instance:
            before = instance.rss_kib()
            command = [sys.executable, "-c", _FLOOD, str(instance.port), str(connections), str(seconds)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
                peak = before
                while client.poll() is None:
                    peak = max(peak, instance.rss_kib())
                    time.sleep(0.05)
                assert client.stdout is not None
                figures = client.stdout.read().strip()
            in_flight = connections * CALLS_A_CONNECTION
            print(f"{in_flight:,} in flight: {figures}; the server grew by {(peak - before) / 1024:.0f} MiB")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
