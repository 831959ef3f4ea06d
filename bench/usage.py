"""What counting the usage of 10,000 flags costs: `python -m bench.usage [calls]`.

Each call names 20 of the flags, so that 50,000 calls make 1,000,000 decisions. First what a flush is: the same calls
counted in this process, without gRPC, and then written batch by batch into a real database. Then what evaluations
notice of it: two servers take turns, one as it is, and one that does not count (`bench.uncounted`). The one that counts
flushes once a minute, while it is measured.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from random import Random

import psycopg

from bench.processes import Instance, database_url, serving
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.domain import evaluation
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.domain.usage import UsageBatch, UsageCounter, UsageWriter
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from gatekeeper_grpc.store.usage import UsageStore

FLAGS = 10_000
NAMED = 20
CLIENT_THREADS = 8
TURNS = 20
SERVERS = {"counted": ("gatekeeper_grpc", "serve"), "uncounted": ("bench.uncounted", "serve")}

# A third of them has a rollout, so that it is decided in two ways.
_FILL = """
    INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage, tags,
                               create_time, update_time, revision)
    SELECT 'flag-' || n, true, 'off', CASE n %% 3 WHEN 0 THEN 50 ELSE 0 END, '{}', now(), now(), 0
    FROM generate_series(1, %s) n
"""


def questions(calls: int, seed: int = 1) -> Iterator[tuple[str, list[str]]]:
    """Yield a user and 20 flags for each call; every flag is named as often as any other, in random order."""
    random, keys = Random(seed), [f"flag-{n}" for n in range(1, FLAGS + 1)]  # noqa: S311 - no secret
    for call in range(calls):
        at = call * NAMED % FLAGS
        if at == 0:
            random.shuffle(keys)
        yield f"user-{call}", keys[at : at + NAMED]


def count_all(counter: UsageCounter, snapshot: Snapshot, calls: int) -> tuple[float, float]:
    """Evaluate all calls and count the answers; returns the microseconds of CPU time of a call, without and with it."""
    spent: dict[bool, list[float]] = {False: [], True: []}
    asked = questions(calls)
    while part := [*islice(asked, FLAGS // NAMED)]:
        for is_counted, found in spent.items():
            began = time.process_time()
            for user, keys in part:
                selection = snapshot.select(keys)
                decisions = snapshot.decide(selection, evaluation.EvaluationContext(user_id=user))
                if is_counted:
                    counter.count(selection, decisions)
            found.append((time.process_time() - began) / len(part) * 1e6)
    return statistics.median(spent[False]), statistics.median(spent[True])


def write_all(counter: UsageCounter, store: UsageStore) -> tuple[list[int], list[float], float]:
    """Write until nothing waits; returns the rows of each flush and its seconds, and those of adding up before."""
    rows: list[int] = []
    took_s: list[float] = []

    def write(batch: UsageBatch) -> None:
        began = time.perf_counter()
        store.add(batch)
        took_s.append(time.perf_counter() - began)
        rows.append(batch.rows)

    began = time.perf_counter()
    UsageWriter(counter, write).finish(within_s=600)
    return rows, took_s, time.perf_counter() - began - sum(took_s)


def measure_flushes(dsn: str, calls: int) -> None:
    """Count and write in this process, and print."""
    with closing(Database(dsn)) as database:
        database.open()
        snapshot, store, counter = SnapshotStore(database).load(), UsageStore(database), UsageCounter()
        uncounted_us, counted_us = count_all(counter, snapshot, calls)
        rows, took_s, adding_s = write_all(counter, store)
        with database.read() as conn:
            ((stored, decisions),) = conn.execute("SELECT count(*), sum(decisions) FROM flag_usage").fetchall()
    print(
        f"  {calls * NAMED:,} decisions about {FLAGS:,} flags: evaluation {uncounted_us:.1f} us of CPU a call, ", end=""
    )
    print(f"{counted_us:.1f} us with counting")
    print(f"  written: {sum(rows):,} rows in {len(rows)} flushes of at most {max(rows):,}")
    print(f"  a flush: median {statistics.median(took_s) * 1e3:.0f} ms, longest {max(took_s) * 1e3:.0f} ms; ", end="")
    print(f"adding up all minutes {adding_s * 1e3:.0f} ms")
    print(f"  in the database: {stored:,} hourly rows with {decisions:,} decisions")


def latencies_ms(instance: Instance, calls: int) -> list[float]:
    """Make the calls from `CLIENT_THREADS` threads; returns the latency of each in milliseconds."""
    asked = [
        EvaluateFlagsRequest(context=EvaluationContext(user_id=user), flag_keys=keys) for user, keys in questions(calls)
    ]
    taken: list[float] = []

    def ask(mine: Iterable[EvaluateFlagsRequest]) -> None:
        with instance.channel() as channel:
            evaluate = EvaluationServiceStub(channel).EvaluateFlags
            for request in mine:
                began = time.perf_counter()
                evaluate(request)
                taken.append((time.perf_counter() - began) * 1e3)

    threads = [threading.Thread(target=ask, args=(asked[n::CLIENT_THREADS],)) for n in range(CLIENT_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def measure_servers(dsn: str, folder: Path, calls: int) -> None:
    """Let both servers take turns, and print."""
    measured: dict[str, list[float]] = {name: [] for name in SERVERS}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(folder, module, DATABASE_URL=dsn)) for name, module in SERVERS.items()
        }
        for server in servers.values():
            latencies_ms(server, 1_000)
        for turn in range(2 * TURNS):
            name = [*SERVERS][turn % 2]
            measured[name] += latencies_ms(servers[name], calls // TURNS)
    for name, found in measured.items():
        print(f"  {name:<10} {len(found):,} calls: {_percentiles(found)}")


def _percentiles(latencies: Sequence[float]) -> str:
    ordered = sorted(latencies)
    return ", ".join(f"p{share} {ordered[int(len(ordered) * share / 100)]:.2f} ms" for share in (50, 99, 99.9))


def main(calls: int = 50_000) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)):
        dsn = database_url(Path(folder))
        with psycopg.connect(dsn) as conn:
            conn.execute(_FILL, [FLAGS])
        measure_flushes(dsn, calls)
        measure_servers(dsn, Path(folder), calls)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
