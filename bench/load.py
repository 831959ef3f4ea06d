"""A first load of 10,000 flags and 1,000,000 targets, and 10,000 new users merged into the million."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from bench.figures import Effort, Figure, median_figure
from bench.processes import fill
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore

FLAGS, TARGETS, MERGED = 10_000, 1_000_000, 10_000
# A load takes seconds: nine rounds would take a minute more.
LOADS = 3


def measure(effort: Effort) -> Iterator[Figure]:
    """Measure loads and merges."""
    flags, targets = effort.scaled(FLAGS), effort.scaled(TARGETS)
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        Migrator(postgres.dsn).up()
        fill(postgres.dsn, flags=flags, targets=targets)
        with closing(Database(postgres.dsn, hung_after_s=0.75)) as database:
            database.open()
            store = SnapshotStore(database)
            loaded = store.load()
            took_s = [_took_s(store.load, targets=targets) for _ in range(min(LOADS, effort.rounds))]
    what = f"first load of {flags:,} flags and {targets:,} targets"
    yield median_figure("load.first", what, "s", took_s)
    merged = effort.scaled(MERGED)
    what = f"{merged:,} new users merged into {targets:,}: CPU"
    yield median_figure("load.merge", what, "ms", _merges_ms(loaded.targets, merged, flags, effort.rounds))


def _took_s(load: Callable[[], Snapshot], *, targets: int) -> float:
    began = time.perf_counter()
    assert len(load().targets) == targets
    return time.perf_counter() - began


def _merges_ms(index: UserIndex, merged: int, flags: int, rounds: int) -> list[float]:
    """Return the processor time of merges of new users."""
    entries = [UserEntry(f"new-{number}", number % flags + 1, 1) for number in range(merged)]
    found = []
    for _ in range(rounds):
        began = time.thread_time()
        index.with_entries(entries)
        found.append((time.thread_time() - began) * 1_000)
    return found
