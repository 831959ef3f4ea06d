"""What refreshing many flags does to evaluation: `python -m bench.refresh [flags] [seconds]`.

One server process with 10,000 flags, of which each call asks for 20, while nothing changes; while 50 changes a second
are made behind its back; and, on a server that is set so, while it reloads everything again and again. The ratios are
to be read, to the first of the three.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg

from bench.processes import Instance, database_url, serving
from gatekeeper.v1 import evaluation_service_pb2 as evaluation
from gatekeeper.v1.evaluation_pb2 import EvaluationContext
from gatekeeper.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.domain.commands import FlagUpdate
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.store.database import Database
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.ledger import Ledger

ASKED = 20
CHANGES_PER_S = 50
# A pause between calls: what is measured is a server with room left, not one that is at its limit.
PAUSE_S = 0.001
KEYS = DataKeys(KeyRing.parse("bench:0123456789abcdef0123456789abcdef"))
CREATE = """
    INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage, create_time, update_time, revision)
    SELECT 'flag-' || n, true, 'off', 50, now(), now(), 1 FROM generate_series(1, %s) n
"""


def latencies_ms(instance: Instance, seconds: float) -> list[float]:
    """Ask for a while from one thread; returns the latencies, sorted."""
    found: list[float] = []
    until = time.perf_counter() + seconds
    keys = [f"flag-{number}" for number in range(1, ASKED + 1)]
    with instance.channel() as channel:
        evaluate = EvaluationServiceStub(channel).EvaluateFlags
        while (began := time.perf_counter()) < until:
            context = EvaluationContext(user_id=f"user-{len(found)}")
            evaluate(evaluation.EvaluateFlagsRequest(context=context, flag_keys=keys))
            found.append((time.perf_counter() - began) * 1_000)
            time.sleep(PAUSE_S)
    return sorted(found)


@contextmanager
def changes(url: str) -> Iterator[None]:
    """Change one flag after the other, 50 times a second, through a store of our own."""
    over = threading.Event()
    with closing(Database(url, pool_size=2)) as database:
        database.open()
        flags = FlagStore(database, Ledger(database, KEYS))

        def change() -> None:
            number = 0
            while not over.wait(1 / CHANGES_PER_S):
                number += 1
                update = FlagUpdate(key=f"flag-{number}", changes={"rollout_percentage": number % 100})
                flags.update(update, Intent(caller=None, action="UpdateFlag"))

        thread = threading.Thread(target=change)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def report(name: str, found: list[float], baseline: list[float]) -> None:
    """Print one line."""
    p50, p99 = (found[int(len(found) * share)] for share in (0.5, 0.99))
    by_p50, by_p99 = p50 / baseline[len(baseline) // 2], p99 / baseline[int(len(baseline) * 0.99)]
    print(
        f"  {name:<20} p50 {p50:5.2f} ms ({by_p50:3.1f} x)   p99 {p99:5.2f} ms ({by_p99:3.1f} x)   max {found[-1]:.0f}"
    )


def main(flags: int = 10_000, seconds: int = 15) -> None:
    """Measure and print."""
    print(f"  {flags} flags, {ASKED} asked for:")
    with tempfile.TemporaryDirectory() as folder:
        with serving(Path(folder)) as instance:
            url = database_url(Path(folder))
            with psycopg.connect(url) as conn:
                conn.execute(CREATE, [flags])
                conn.execute("UPDATE revision_head SET revision = revision + 1000000000")
            time.sleep(3.0)
            baseline = latencies_ms(instance, seconds)
            report("nothing", baseline, baseline)
            with changes(url):
                report(f"{CHANGES_PER_S} changes/s", latencies_ms(instance, seconds), baseline)
        with serving(Path(folder), GATEKEEPER_RELOAD_INTERVAL_S="0.001") as instance:
            time.sleep(1.0)
            report("reloads all the time", latencies_ms(instance, seconds), baseline)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
