"""The cost of idle watchers, and how soon all are told of a change: `python -m bench.watch [watchers] [rounds]`.

Two server processes on one PostgreSQL, one with the watchers and one without. The watchers run in two other processes.
Unary calls are timed on both servers in turn, so that both see the same machine. Then flags change, first one by one
and then while calls are timed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from google.protobuf.field_mask_pb2 import FieldMask

from bench.processes import Instance, Metadata, create_flags, database_url, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

PROCESSES = 2
CLIENT_THREADS = 2
PAUSE_S = 0.002
QUESTION = evaluation.EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))


@contextmanager
def watched(instance: Instance, watchers: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Watch an instance inside the block; all streams are open when it begins."""
    command = [sys.executable, "-m", "bench.watchers", str(instance.port), str(watchers // PROCESSES)]
    audiences = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    try:
        for audience in audiences:
            assert audience.stdout is not None
            assert audience.stdout.readline() == "open\n"
        yield audiences
    finally:
        for audience in audiences:
            audience.kill()
            audience.wait()


def latencies_ms(instance: Instance, seconds: float) -> list[float]:
    """Time unary calls at a pace that leaves the machine half idle."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    def ask() -> None:
        with instance.channel() as channel:
            evaluate = EvaluationServiceStub(channel).EvaluateFlags
            evaluate(QUESTION)
            while (began := time.perf_counter()) < until:
                evaluate(QUESTION)
                latencies.append((time.perf_counter() - began) * 1_000)
                time.sleep(PAUSE_S)

    threads = [threading.Thread(target=ask) for _ in range(CLIENT_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies


class Editor:
    """Flips a flag through one instance."""

    def __init__(self, instance: Instance) -> None:
        self._metadata: Metadata = log_in(instance)
        self._stub = AdminServiceStub(instance.channel())
        self._turn = 0

    def change(self) -> float:
        """Change the flag; returns the time of the acknowledgement."""
        self._turn += 1
        flag = flag_pb2.Flag(key="flag-0", rollout_percentage=self._turn % 100)
        request = admin.UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["rollout_percentage"]))
        self._stub.UpdateFlag(request, metadata=self._metadata)
        return time.monotonic()


def told_after_ms(editor: Editor, audiences: list[subprocess.Popen[str]]) -> float:
    """Change a flag; returns the ms from the acknowledgement until the last watcher was told."""
    acknowledged = editor.change()
    return (max(_told(audience) for audience in audiences) - acknowledged) * 1_000


def _told(audience: subprocess.Popen[str]) -> float:
    assert audience.stdout is not None
    return float(json.loads(audience.stdout.readline())["last"])


def threads_of(instance: Instance) -> int:
    """Count the threads of an instance."""
    return len([*Path(f"/proc/{instance.pid}/task").iterdir()])


def show(name: str, latencies: list[float]) -> tuple[float, float]:
    """Print and return the median and p99 of latencies in ms."""
    p50, p99 = statistics.median(latencies), sorted(latencies)[int(len(latencies) * 0.99)]
    print(f"  {name:<34} p50 {p50:5.2f} ms   p99 {p99:5.2f} ms   ({len(latencies)} calls)")
    return p50, p99


def main(watchers: int = 5_000, rounds: int = 5) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        busy = stack.enter_context(serving(folder))
        quiet = stack.enter_context(serving(folder, DATABASE_URL=database_url(folder)))
        create_flags(busy)
        for instance in (busy, quiet):
            latencies_ms(instance, 1.0)
        before_kib, threads = busy.rss_kib(), threads_of(busy)
        began = time.monotonic()
        audiences = stack.enter_context(watched(busy, watchers))
        print(f"{watchers} watchers, opened in {time.monotonic() - began:.1f} s")
        per_watcher = (busy.rss_kib() - before_kib) / watchers
        print(f"  memory {per_watcher:.1f} KiB each   threads {threads} -> {threads_of(busy)}")
        without, idle = [], []
        for _ in range(rounds):
            without += latencies_ms(quiet, 2.0)
            idle += latencies_ms(busy, 2.0)
        floor, with_them = show("unary calls, no watchers", without), show(f"with {watchers} idle watchers", idle)
        print(f"  ratio p50 {with_them[0] / floor[0]:.2f}   p99 {with_them[1] / floor[1]:.2f}")
        editor = Editor(busy)
        told = [told_after_ms(editor, audiences) for _ in range(2 * rounds)]
        print(f"  one change told to all: median {statistics.median(told):.0f} ms, at most {max(told):.0f} ms")
        calls: list[float] = []
        timing = threading.Thread(target=lambda: calls.extend(latencies_ms(busy, 2.0 * rounds)))
        timing.start()
        while timing.is_alive():
            told_after_ms(editor, audiences)
        show("while changes are sent all the time", calls)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
