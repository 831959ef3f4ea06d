"""Several workers on one port: rate, propagation, rolls: `python -m bench.workers [seconds] [changes] [rolls]`.

First it measures the rate of evaluations with one and with two workers, in turn within one run. Client processes share
the cores with the servers, so compare the ratio, not the rates. Then it measures how soon a change is visible on all
of four workers: over one connection to each, the clock runs from the acknowledgement until the last worker answers
with the new revision. Finally it rolls two workers repeatedly while clients without a retry policy call, and counts
failures.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from bench.processes import Instance, Metadata, create_flags, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

CLIENT_PROCESSES = 2
CLIENT_CONNECTIONS = 8
ROUNDS = 3
FLAG = "propagated"
QUESTION = evaluation.EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))
_ASK = "import sys; from bench.workers import ask; print(ask(int(sys.argv[1]), float(sys.argv[2])))"


def ask(port: int, seconds: float) -> float:
    """Call from this process for `seconds`; returns calls per second."""
    counts = [0] * CLIENT_CONNECTIONS
    until = time.perf_counter() + seconds

    def call(number: int) -> None:
        with Instance(port=port).channel() as channel:
            evaluate = EvaluationServiceStub(channel).EvaluateFlags
            while time.perf_counter() < until:
                evaluate(QUESTION)
                counts[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(CLIENT_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def rate(instance: Instance, seconds: float) -> float:
    """Call from `CLIENT_PROCESSES` processes at once; returns their total calls per second."""
    command = [sys.executable, "-c", _ASK, str(instance.port), str(seconds)]
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(CLIENT_PROCESSES)]
    return sum(float(client.communicate()[0]) for client in clients)


def measure_rates(seconds: float) -> dict[int, float]:
    """Return the median rate by number of workers; they take turns, so that a busy moment affects both."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as stack:
        folders = {n: Path(stack.enter_context(tempfile.TemporaryDirectory())) for n in rates}
        fleets = {n: stack.enter_context(serving(folders[n], GATEKEEPER_WORKERS=str(n))) for n in rates}
        for fleet in fleets.values():
            create_flags(fleet)
            rate(fleet, 1.0)
        for _ in range(ROUNDS):
            for number, fleet in fleets.items():
                rates[number].append(rate(fleet, seconds))
    return {number: statistics.median(measured) for number, measured in rates.items()}


def measure_propagation(changes: int, workers: int = 4) -> list[float]:
    """Return the milliseconds from the acknowledgement of each change until the last worker showed it."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), GATEKEEPER_WORKERS=str(workers)) as fleet:
        metadata = log_in(fleet)
        with fleet.channel() as to_any, _connection_to_each(fleet, workers) as channels:
            flags = AdminServiceStub(to_any)
            flags.CreateFlag(admin.CreateFlagRequest(flag=flag_pb2.Flag(key=FLAG, enabled=True)), metadata=metadata)
            answers = [EvaluationServiceStub(channel) for channel in channels]
            return [_seen_by_all_ms(flags, answers, metadata, turn=turn) for turn in range(changes)]


def measure_rolls(rolls: int) -> tuple[int, list[str]]:
    """Roll two workers under load; returns the number of answered calls and the failures."""
    answered, failures = [0], list[str]()
    over = threading.Event()

    def ask(stub: EvaluationServiceStub) -> None:
        while not over.is_set():
            try:
                stub.EvaluateFlags(QUESTION, timeout=10)
                answered[0] += 1  # Not exact: two threads may count one call.
            except grpc.RpcError as failed:
                failures.append(f"{failed.code()}: {failed.details()}")

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        fleet = stack.enter_context(serving(Path(folder), GATEKEEPER_WORKERS="2"))
        stubs = [EvaluationServiceStub(stack.enter_context(fleet.channel())) for _ in range(CLIENT_CONNECTIONS)]
        threads = [threading.Thread(target=ask, args=(stub,)) for stub in stubs]
        for thread in threads:
            thread.start()
        for _ in range(rolls):
            _roll(fleet)
        over.set()
        for thread in threads:
            thread.join()
    return answered[0], failures


def _roll(fleet: Instance) -> None:
    before = _children(fleet)
    os.kill(fleet.pid, signal.SIGHUP)
    while before & _children(fleet) or len(_children(fleet)) < len(before):
        time.sleep(0.05)


def _seen_by_all_ms(
    flags: AdminServiceStub, answers: list[EvaluationServiceStub], metadata: Metadata, *, turn: int
) -> float:
    flag = flag_pb2.Flag(key=FLAG, rollout_percentage=100 * (turn % 2 == 0))
    change = admin.UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["rollout_percentage"]))
    revision = flags.UpdateFlag(change, metadata=metadata).revision
    acknowledged = time.perf_counter()
    for stub in answers:
        while stub.EvaluateFlags(QUESTION).revision < revision:
            pass
    return (time.perf_counter() - acknowledged) * 1_000


@contextmanager
def _connection_to_each(fleet: Instance, workers: int) -> Iterator[list[grpc.Channel]]:
    """Open connections until there is one to each worker; the kernel chooses the worker."""
    with ExitStack() as stack:
        found: dict[int, grpc.Channel] = {}
        while len(found) < workers:
            channel = stack.enter_context(fleet.channel())
            before = _connected_workers(fleet)
            EvaluationServiceStub(channel).EvaluateFlags(QUESTION)
            after = _connected_workers(fleet)
            (pid,) = {pid for pid, count in after.items() if count > before.get(pid, 0)}
            found.setdefault(pid, channel)
        yield list(found.values())


def _connected_workers(fleet: Instance) -> dict[int, int]:
    """Count the connections to the shared port that each worker holds, by process id."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    established = {f"socket:[{row[9]}]" for row in rows if row[3] == "01" and row[1].endswith(f":{fleet.port:04X}")}
    return {pid: len(established & set(map(_target, Path(f"/proc/{pid}/fd").iterdir()))) for pid in _children(fleet)}


def _children(fleet: Instance) -> set[int]:
    """Return the process ids of the workers."""
    return set(map(int, Path(f"/proc/{fleet.pid}/task/{fleet.pid}/children").read_text().split()))


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:  # Closed since it was listed.
        return ""


def main(seconds: float = 4.0, changes: float = 200, rolls: float = 5) -> None:
    """Measure and print."""
    one, two = measure_rates(seconds).values()
    print(f"  1 worker  {one:8.0f} calls/s")
    print(f"  2 workers {two:8.0f} calls/s   ratio {two / one:.2f}   (on cores shared with the clients)")
    delays = sorted(measure_propagation(int(changes)))
    p99 = delays[max(0, int(len(delays) * 0.99) - 1)]
    print(f"  {int(changes)} changes, until visible on all of 4 workers:")
    print(
        f"  p50 {statistics.median(delays):.1f} ms   p99 {p99:.1f} ms   max {delays[-1]:.1f} ms   (promised: p99 < 100)"
    )
    answered, failures = measure_rolls(int(rolls))
    print(f"  {int(rolls)} rolls of 2 workers: {answered} calls answered, {len(failures)} failed {failures[:3]}")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
