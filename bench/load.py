"""A load of everything, and a delta with many users: `python -m bench.load [flags] [targets] [merged] [rounds]`.

A first load gets a million targets by COPY; its baseline asks for them by a cursor, a thousand at a time, and both take
turns. A later load rests, so that evaluations are not delayed. Then 10,000 new users are merged into the million; the
baseline sorts each part of the index from the start. Compare the ratios.
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import LiteralString
from unittest.mock import patch

import psycopg

from gatekeeper_grpc.domain import user_index
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex
from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.postgres.database import Connection, Database
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore

TAGS = {"off": 0, "on": 1}
# Foreign keys are not checked for each of a million rows.
FILL = """
    SET session_replication_role = replica;
    INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage, create_time, update_time, revision)
    SELECT 'flag-' || n, true, 'off', 50, now(), now(), 1 FROM generate_series(1, {flags}) n;
    INSERT INTO subjects (user_id) SELECT 'user-' || n FROM generate_series(1, {targets}) n;
    INSERT INTO targeted_users (flag_id, subject_id, variant)
    SELECT flag_id, subject_id, CASE subject.n % 2 WHEN 0 THEN 'off' ELSE 'on' END
    FROM (SELECT subject_id, row_number() OVER () AS n FROM subjects) subject
    JOIN (SELECT flag_id, row_number() OVER () AS n FROM feature_flags) flag ON flag.n = subject.n % {flags} + 1;
"""


class BySelect(SnapshotStore):
    """The baseline: PostgreSQL plans for the first rows of a cursor, and waits between two portions."""

    def _copied(self, conn: Connection, statement: LiteralString, *, rest_s: float) -> UserIndex:
        assert not rest_s
        query = statement.partition("(")[2].rpartition(")")[0]
        with conn.cursor(name="entries") as cursor:
            cursor.itersize = 1_000
            rows = cursor.execute(query)
            return UserIndex.build(UserEntry(user_id, owner_id, TAGS[variant]) for user_id, owner_id, variant in rows)


def merge_by_sorting(shard: bytes, changed: Mapping[bytes, int | None], counts: dict[int, int]) -> bytes:
    """Merge as `user_index` would without bisection: the baseline."""
    tags: dict[bytes, int | None] = {shard[at : at + 24]: shard[at + 24] for at in range(0, len(shard), 25)}
    for name, tag in changed.items():
        owner = int.from_bytes(name[16:], "big")
        counts[owner] = counts.get(owner, 0) + (tag is not None) - (name in tags)
        tags[name] = tag
    return b"".join(name + bytes((tag,)) for name, tag in sorted(tags.items()) if tag is not None)


def fill(dsn: str, *, flags: int, targets: int) -> None:
    """Write flags and targets as no change would, then VACUUM ANALYZE."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(FILL.format(flags=flags, targets=targets).encode())
        conn.execute("VACUUM ANALYZE")


def took_s(load: Callable[[], Snapshot], *, targets: int) -> float:
    """Return how long a load takes."""
    began = time.perf_counter()
    assert len(load().targets) == targets
    return time.perf_counter() - began


def cpu_ms(index: UserIndex, entries: Iterable[UserEntry]) -> float:
    """Return the processor time of a merge."""
    began = time.thread_time()
    index.with_entries(entries)
    return (time.thread_time() - began) * 1_000


def measure_loads(dsn: str, *, targets: int, rounds: int) -> Snapshot:
    """Print the durations of loads; returns what they load."""
    with closing(Database(dsn, hung_after_s=0.75)) as database:
        database.open()
        store, baseline = SnapshotStore(database), BySelect(database)
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        loaded = store.load()
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1_024
        assert baseline.load().targets.shards == loaded.targets.shards
        by_copy, by_select = [], []
        for _ in range(rounds):
            by_copy.append(took_s(store.load, targets=targets))
            by_select.append(took_s(baseline.load, targets=targets))
        resting_s = took_s(lambda: store.load(sharing=loaded), targets=targets)
    ratios = sorted(each / other for each, other in zip(by_copy, by_select, strict=True))
    print(
        f"  first load {statistics.median(by_copy):.1f} s (goal: 6 s), by cursor {statistics.median(by_select):.1f} s,"
        f" ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    print(f"  memory grew by {grown_mib:.0f} MiB at most; a later load, which rests: {resting_s:.1f} s")
    return loaded


def measure_merges(index: UserIndex, *, merged: int, flags: int, rounds: int) -> None:
    """Print the processor time of merges of new users."""
    entries = [UserEntry(f"new-{number}", number % flags + 1, 1) for number in range(merged)]
    by_bisection, by_sorting = [], []
    after = index.with_entries(entries)
    for _ in range(rounds):
        by_bisection.append(cpu_ms(index, entries))
        with patch.object(user_index, "_merge", merge_by_sorting):
            by_sorting.append(cpu_ms(index, entries))
            assert index.with_entries(entries).shards == after.shards
    new_ms, old_ms = statistics.median(by_bisection), statistics.median(by_sorting)
    print(
        f"  {merged} users merged into {len(index)}: {new_ms:.0f} ms of CPU (goal: 100 ms), by sorting {old_ms:.0f} ms,"
        f" ratio {new_ms / old_ms:.2f}"
    )


def main(flags: int = 10_000, targets: int = 1_000_000, merged: int = 10_000, rounds: int = 3) -> None:
    """Measure and print."""
    print(f"  {flags} flags, {targets} targets:")
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        Migrator(postgres.dsn).up()
        fill(postgres.dsn, flags=flags, targets=targets)
        loaded = measure_loads(postgres.dsn, targets=targets, rounds=rounds)
    measure_merges(loaded.targets, merged=merged, flags=flags, rounds=rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
