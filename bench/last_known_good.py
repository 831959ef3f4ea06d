"""The last-known-good snapshot: its size, the time to write and read it, its cost to evaluation, a start from it.

`python -m bench.last_known_good [flags] [targets]`. A thread evaluates 20 flags for one user two hundred times a
second; its baseline is the same while nothing is written. The start is a real process whose database refuses
connections, measured from its launch to the first answer.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from bench.processes import serving
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext as ContextMessage
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.cache.last_known_good import newest_stored
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.snapshot_file import SnapshotFile
from gatekeeper_grpc.cache.snapshot_format import SnapshotHeader, encode
from gatekeeper_grpc.cache.snapshot_storage import SnapshotStorage
from gatekeeper_grpc.cache.snapshot_writer import SnapshotWriter
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.flag import Flag, FlagConfig
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from gatekeeper_grpc.redis_bus.bus import RedisBus
from tests.support.valkey import valkey

KEYS = {
    "GATEKEEPER_JWT_KEYS": "bench:0123456789abcdef0123456789abcdef",
    "GATEKEEPER_DATA_KEYS": "bench:fedcba9876543210fedcba9876543210",
    "GATEKEEPER_ERASURE_KEY": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",  # pragma: allowlist secret
}
SEALER = DataKeys(KeyRing.parse(KEYS["GATEKEEPER_DATA_KEYS"]))
EVALUATED = [f"flag-{number}" for number in range(20)]
THINK_S = 0.005
QUIET_S = 3.0
STARTS = 5


def snapshot_of(flags: int, targets: int) -> Snapshot:
    """Build a snapshot of realistic flags and of individually targeted users."""
    now = datetime.now(UTC)
    return Snapshot.build(
        installation_id=uuid4(),
        revision=1,
        flags=[
            Flag(
                flag_id=number,
                create_time=now,
                update_time=now,
                revision=1,
                config=FlagConfig(
                    key=f"flag-{number}",
                    description="Shows the new checkout to those who asked for it.",
                    enabled=True,
                    rollout_percentage=number % 101,
                    tags=("checkout", "2026"),
                    owner="team-checkout",
                ),
            )
            for number in range(flags)
        ],
        targets=UserIndex.build(UserEntry(f"user-{number}", number % flags, number % 2) for number in range(targets)),
    )


@contextmanager
def evaluating(snapshot: Snapshot) -> Iterator[list[float]]:
    """Evaluate every 5 ms inside the block; the yielded list collects the latencies in ms."""
    latencies: list[float] = []
    stopping = threading.Event()
    plans = snapshot.select(EVALUATED).plans

    def evaluate() -> None:
        while not stopping.wait(THINK_S):
            began = time.perf_counter()
            snapshot.evaluate(plans, EvaluationContext(user_id=f"user-{len(latencies)}"))
            latencies.append((time.perf_counter() - began) * 1_000)

    thread = threading.Thread(target=evaluate)
    thread.start()
    try:
        yield latencies
    finally:
        stopping.set()
        thread.join()


def percentile(latencies: list[float], share: float) -> float:
    """Return the latency that `share` of all latencies do not exceed."""
    return sorted(latencies)[int(len(latencies) * share)]


def write(snapshot: Snapshot, storage: SnapshotStorage, *, pause: Callable[[float], object] = time.sleep) -> float:
    """Write the snapshot to a storage with a `SnapshotWriter`; returns the seconds that took."""
    cache = SnapshotCache(stale_after_s=1.0, max_waiters=1)
    cache.publish(snapshot, confirmed_at=time.monotonic())
    began = time.perf_counter()
    SnapshotWriter(cache, storage, SEALER, pause=pause).write_if_due()
    return time.perf_counter() - began


def measure_evaluation(snapshot: Snapshot, folder: Path) -> None:
    """Print the latency of evaluation while snapshots are written without the pauses between them."""
    with evaluating(snapshot) as baseline:
        time.sleep(QUIET_S)
    print(
        f"  evaluation of 20 flags, nothing written: p50 {percentile(baseline, 0.5):.2f} ms"
        f"  p99 {percentile(baseline, 0.99):.2f} ms"
    )
    for name, pause in (("in slices", time.sleep), ("in one go (control)", lambda _: None)):
        with evaluating(snapshot) as latencies:
            until = time.monotonic() + QUIET_S
            while time.monotonic() < until:
                (folder / "loaded").unlink(missing_ok=True)
                write(snapshot, SnapshotFile(folder / "loaded"), pause=pause)
        p50, p99 = (percentile(latencies, share) for share in (0.5, 0.99))
        ratios = f"{p50 / percentile(baseline, 0.5):.2f} and {p99 / percentile(baseline, 0.99):.2f} times"
        print(f"  while it is written {name}: p50 {p50:.2f} ms  p99 {p99:.2f} ms   ({ratios})")


def measure_storage(name: str, snapshot: Snapshot, storage: SnapshotStorage) -> None:
    """Print how long it takes to write a snapshot to a storage and to read it back."""
    took_s = write(snapshot, storage)
    began = time.perf_counter()
    kept = newest_stored([storage], SEALER)
    read_s = time.perf_counter() - began
    assert kept
    assert kept.snapshot.targets.shards == snapshot.targets.shards
    print(f"  {name}: written in {took_s:.2f} s, in slices; read, checked and ready to evaluate in {read_s:.2f} s")


def measure_start(data_dir: Path) -> None:
    """Print how soon a process answers when its database is down."""
    took = sorted(_start_s(data_dir) for _ in range(STARTS))
    print(
        f"  start without database: first answer after {took[len(took) // 2]:.2f} s, at worst {took[-1]:.2f} s"
        " (promised: 2 s)"
    )


def _start_s(data_dir: Path) -> float:
    began = time.perf_counter()
    # Nothing listens on port 1.
    with (
        serving(data_dir, DATABASE_URL="postgresql://127.0.0.1:1/none", **KEYS) as instance,
        instance.channel() as channel,
    ):
        request = EvaluateFlagsRequest(context=ContextMessage(user_id="user-1"), flag_keys=EVALUATED)
        answer = EvaluationServiceStub(channel).EvaluateFlags(request, wait_for_ready=True)
        took_s = time.perf_counter() - began
        assert answer.stale
    return took_s


def main(flags: int = 10_000, targets: int = 1_000_000) -> None:
    """Measure and print."""
    snapshot = snapshot_of(flags, targets)
    pieces = [*encode(snapshot, SnapshotHeader.of(snapshot, confirmed_time=datetime.now(UTC)), SEALER)]
    print(f"  {flags} flags, {targets} targets: {sum(map(len, pieces)) / 1e6:.1f} MB in {len(pieces)} pieces")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure_storage("file", snapshot, SnapshotFile(folder / "snapshot"))
        with valkey(folder / "valkey") as server, closing(RedisBus(server.url, SEALER.fingerprints)) as redis:
            measure_storage("Redis", snapshot, redis.snapshot)
        measure_evaluation(snapshot, folder)
        measure_start(folder)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
