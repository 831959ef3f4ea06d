"""Thousands of idle watchers do not slow down calls, and a watcher that does not read delays no other."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest
from gatekeeper_client.v1.evaluation_service_pb2 import WatchFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from tests.faults.figures import BUSY_S, ROUNDS, TOLD_WITHIN_S, WATCHED_P99_FACTOR, WATCHED_P99_NOISE_S
from tests.faults.fleet import Instance, fleet
from tests.faults.load import Load, at_work
from tests.faults.postgres import Postgres
from tests.faults.proxy import Mode, proxied
from tests.faults.report import Report
from tests.support.processes import TIMEOUT_S

pytestmark = pytest.mark.promise("C5")

WATCHERS = 5_000
ROUND_S = 3.0
CHANGES = 10
# Each makes a message of 140 bytes; a client that reads none and has little room has it for 64 KiB at most.
UNREAD = 500
MAX_KEY_CHARS = 128


# By default a client has room for 4 MiB.
_NO_ROOM = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]


class Audience:
    """Watchers in a process of their own, which tells when the last of them was told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self._lines = process.stdout
        assert self._next() == "open\n"

    def told_at(self, revision: int) -> float:
        """When the last watcher was told of a revision, on the system's monotonic clock."""
        while (told := json.loads(self._next()))["revision"] < revision:
            pass
        return float(told["last"])

    def _next(self) -> str:
        return self._lines.readline()


@contextmanager
def audience(instance: Instance, size: int = WATCHERS) -> Iterator[Audience]:
    """Have an instance watched for the length of the block."""
    command = [sys.executable, "-m", "bench.watchers", str(instance.gatekeeper.port), str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Audience(process)
        finally:
            process.kill()


@contextmanager
def watcher_that_does_not_read(instance: Instance) -> Iterator[None]:
    """A watcher whose connection is open and makes no room, however much is sent to it."""
    with (
        proxied(instance.gatekeeper.port) as network,
        grpc.insecure_channel(f"127.0.0.1:{network.port}", options=_NO_ROOM) as channel,
    ):
        call = EvaluationServiceStub(channel).WatchFlags(WatchFlagsRequest())
        next(call)
        with network.broken(Mode.BLACKHOLE):
            yield
        call.cancel()


def p99_s(instance: Instance, load: Load | None = None) -> float:
    load = load or Load([instance], per_s=200)
    with at_work(load):
        time.sleep(ROUND_S)
    assert load.failed == {}, load.complaints
    return load.p99_s()


def told_after_s(instance: Instance, watching: Audience) -> float:
    """Change a flag; how long after the acknowledgement the last watcher was told."""
    revision, acknowledged_at = instance.write(), time.monotonic()
    return max(0.0, watching.told_at(revision) - acknowledged_at)


def test_thousands_of_idle_watchers_cost_a_call_nothing_and_all_are_told(
    postgres: Postgres, tmp_path: Path, report: Report
) -> None:
    with fleet(postgres, tmp_path, size=1) as instances:
        instance = instances[0]
        alone_s = min(p99_s(instance) for _ in range(ROUNDS))
        before = instance.gatekeeper.resident_bytes()
        with report.fault("C5", f"{WATCHERS:,} idle watchers") as row, audience(instance) as watching:
            each = (instance.gatekeeper.resident_bytes() - before) / WATCHERS
            watched_s = min(p99_s(instance) for _ in range(ROUNDS))
            row.staleness_s = max(told_after_s(instance, watching) for _ in range(CHANGES))
        row.also = (
            f"p99 {alone_s * 1000:.1f} ms alone, {watched_s * 1000:.1f} ms watched; {each / 1024:.1f} KiB a watcher;"
            " the staleness is that of the last watcher"
        )

    assert watched_s < alone_s * WATCHED_P99_FACTOR + WATCHED_P99_NOISE_S
    assert row.staleness_s < TOLD_WITHIN_S + BUSY_S


def slowest_told_s(instance: Instance) -> float:
    """How long others wait for their news while somebody does not read, and for long cannot be sent anything more."""
    with watcher_that_does_not_read(instance), audience(instance, 100) as watching:
        for number in range(UNREAD):
            key = f"unread-{number}".ljust(MAX_KEY_CHARS, "-")
            instance.admin.CreateFlag(CreateFlagRequest(flag=Flag(key=key)), timeout=TIMEOUT_S)
        return max(told_after_s(instance, watching) for _ in range(CHANGES))


def test_a_watcher_that_does_not_read_harms_nobody(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    with fleet(postgres, tmp_path, size=1) as instances:
        load = Load(instances.instances)
        with at_work(load), report.fault("C5", "a watcher that does not read", load) as row:
            row.staleness_s = slowest_told_s(instances[0])
        row.also = "the staleness is that of 100 other watchers"

    assert load.failed == {}, load.complaints
    assert row.staleness_s < TOLD_WITHIN_S + BUSY_S


def test_twin_that_waits_for_each_watcher_tells_nobody(postgres: Postgres, tmp_path: Path, report: Report) -> None:
    with fleet(postgres, tmp_path, size=1, sabotage="waits_for_watchers") as instances:
        told_s = slowest_told_s(instances[0])

    assert told_s > TOLD_WITHIN_S + BUSY_S
    report.twin("C5", "sending without waiting", f"100 other watchers told {told_s:.0f} s late")
