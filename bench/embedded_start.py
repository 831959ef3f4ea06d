"""A start on the embedded database with many targets: `python -m bench.embedded_start [targets]`.

Imports the targets, waits until a snapshot of all of them is kept, and starts the server again: how soon it answers,
how soon with an answer that is not stale, and for comparison how long it takes to load all without a kept snapshot.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc

from bench.processes import Instance, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest, EvaluateFlagsResponse
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

FLAG = "targeted"
MESSAGE = 10_000
# No kept snapshot with all targets is smaller.
BYTES_PER_TARGET = 10
KEPT_WITHIN_S = 120
STARTS = 5


def import_targets(instance: Instance, targets: int) -> None:
    """Create a flag that is on for so many users."""
    metadata = log_in(instance)
    with instance.channel() as channel:
        service = AdminServiceStub(channel)
        service.CreateFlag(admin.CreateFlagRequest(flag=flag_pb2.Flag(key=FLAG, enabled=True)), metadata=metadata)
        response = service.ImportTargets(_messages(targets), metadata=metadata)
    assert response.added_count == targets


def _messages(targets: int) -> Iterator[admin.ImportTargetsRequest]:
    for first in range(0, targets, MESSAGE):
        user_ids = [f"user-{number}" for number in range(first, min(first + MESSAGE, targets))]
        yield admin.ImportTargetsRequest(flag_key=FLAG, user_ids=user_ids, value=True)


def wait_until_kept(kept: Path, targets: int) -> None:
    """Return when the kept snapshot has all targets."""
    until = time.monotonic() + KEPT_WITHIN_S
    while not kept.exists() or kept.stat().st_size < targets * BYTES_PER_TARGET:
        assert time.monotonic() < until, "no snapshot is kept"
        time.sleep(0.1)


def start(data_dir: Path, user_id: str) -> tuple[float, float]:
    """Start a server; returns the seconds to the first right answer, and to the first one that is not stale."""
    request, began = (
        EvaluateFlagsRequest(context=EvaluationContext(user_id=user_id), flag_keys=[FLAG]),
        time.perf_counter(),
    )
    with serving(data_dir) as instance, instance.channel() as channel:
        answers = _answers(EvaluationServiceStub(channel), request)
        answer = next(answers)
        first_s = time.perf_counter() - began
        while answer.stale:
            answer = next(answers)
        assert answer.flags[FLAG]
        return first_s, time.perf_counter() - began


def _answers(service: EvaluationServiceStub, request: EvaluateFlagsRequest) -> Iterator[EvaluateFlagsResponse]:
    """Yield an answer whenever there is one: without any snapshot, calls are refused until all is loaded."""
    while True:
        with suppress(grpc.RpcError):
            yield service.EvaluateFlags(request, wait_for_ready=True)
        time.sleep(0.01)


def main(targets: int = 1_000_000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir, last = Path(folder), f"user-{targets - 1}"
        with serving(data_dir) as instance:
            import_targets(instance, targets)
            wait_until_kept(data_dir / "snapshot", targets)
        took = sorted(start(data_dir, last) for _ in range(STARTS))
        (data_dir / "snapshot").unlink()
        _, loaded_s = start(data_dir, last)
    first_s, fresh_s = took[len(took) // 2]
    print(
        f"  {targets} targets: first answer after {first_s:.2f} s (promised: 2 s; at worst {took[-1][0]:.2f} s),"
        f" fresh after {fresh_s:.2f} s; without a kept snapshot {loaded_s:.2f} s"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
