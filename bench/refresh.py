"""The cost of refreshing many flags to evaluation: `python -m bench.refresh [flags] [seconds] [rounds]`.

One server process has 10,000 flags, and each call asks for 20 of them: while nothing changes, while another client
makes 50 changes a second, and while the server reloads everything without a pause. Compare the ratios to the first of
the three.
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
from gatekeeper_client.v1 import evaluation_service_pb2 as evaluation
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.domain.commands import FlagUpdate
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database

ASKED = 20
CHANGES_PER_S = 50
# A pause between calls, so that the server is measured below its limit.
PAUSE_S = 0.001
KEYS = DataKeys(KeyRing.parse("bench:0123456789abcdef0123456789abcdef"))
CREATE = """
    INSERT INTO feature_flags (key, enabled, default_variant, rollout_percentage, create_time, update_time, revision)
    SELECT 'flag-' || n, true, 'off', 50, now(), now(), 1 FROM generate_series(1, %s) n
"""


def latencies_ms(instance: Instance, seconds: float) -> list[float]:
    """Call from one thread for `seconds`; returns the latencies."""
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
    return found


@contextmanager
def changes(url: str) -> Iterator[None]:
    """Change one flag after the other, 50 times a second, through a second store."""
    over = threading.Event()
    with closing(Database(url, pool_size=2)) as database:
        database.open()
        flags = FlagStore(database, MutationRunner(database, KEYS))

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


def report(found: dict[str, list[float]]) -> None:
    """Print one line for each of the three cases."""
    quiet = sorted(found["nothing"])
    for name, latencies in found.items():
        latencies.sort()
        shares = []
        for share in (0.5, 0.99):
            there = latencies[int(len(latencies) * share)]
            shares.append(f"p{share * 100:.0f} {there:5.2f} ms ({there / quiet[int(len(quiet) * share)]:3.1f} x)")
        print(f"  {name:<20} {'   '.join(shares)}   max {latencies[-1]:.0f} ms")


def main(flags: int = 10_000, seconds: int = 5, rounds: int = 4) -> None:
    """Measure and print, in rounds, so that other load of the machine affects all three cases."""
    print(f"  {flags} flags, {ASKED} asked for:")
    found: dict[str, list[float]] = {"nothing": [], f"{CHANGES_PER_S} changes/s": [], "reloads all the time": []}
    quiet, changing, reloading = found.values()
    with tempfile.TemporaryDirectory() as folder:
        with serving(Path(folder)), psycopg.connect(database_url(Path(folder))) as conn:
            conn.execute(CREATE, [flags])
        for _ in range(rounds):
            with serving(Path(folder)) as instance:
                latencies_ms(instance, 1.0)
                quiet += latencies_ms(instance, seconds)
                with changes(database_url(Path(folder))):
                    changing += latencies_ms(instance, seconds)
            with serving(Path(folder), GATEKEEPER_RELOAD_INTERVAL_S="0.001") as instance:
                latencies_ms(instance, 1.0)
                reloading += latencies_ms(instance, seconds)
    report(found)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
