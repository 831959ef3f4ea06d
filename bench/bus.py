"""The bus with many instances: what an announcement costs, and the reads that follow it.

A thousand instances do not fit on one machine, so parts of them are simulated:

- sessions that LISTEN, as each instance has one; the cost for 1,000 follows from the line through the largest numbers;
- subscribers of a real Redis-compatible server, all 1,000 of them;
- the read of a change by a thousand instances, made one after the other by a few connections.

At rest, each instance announces a heartbeat to itself every 5 s. PostgreSQL wakes all that listen for it.
"""

import os
import selectors
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg

from bench.bus_model import HEARTBEAT_EVERY_S, LISTENERS
from bench.cost_model import line_through
from bench.figures import Effort, Figure, figure, median_figure
from bench.processes import cpu_of_thread_s, fill
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.domain.commands import FlagUpdate
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.embedded import EmbeddedPostgres
from gatekeeper_grpc.store.flags import FlagStore
from gatekeeper_grpc.store.migrations.runner import Migrator
from gatekeeper_grpc.store.mutations import MutationRunner
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from tests.support.processes import postgres_pids
from tests.support.valkey import valkey

INSTANCES = 1_000
ANNOUNCEMENTS_EACH_ROUND = 20
READS = 1_000
WITHIN_S = 60.0
KEYS = DataKeys(KeyRing.parse("bench:0123456789abcdef0123456789abcdef"))


def measure(effort: Effort) -> Iterator[Figure]:
    """Measure listeners, subscribers and reads."""
    announcements = effort.rounds * effort.scaled(ANNOUNCEMENTS_EACH_ROUND)
    with tempfile.TemporaryDirectory(prefix="gatekeeper-bench-") as name:
        yield from _listeners(Path(name), [effort.scaled(count) for count in LISTENERS], announcements)
        yield from _subscribers(Path(name) / "valkey", effort.scaled(INSTANCES), announcements)


def _listeners(folder: Path, counts: Sequence[int], announcements: int) -> Iterator[Figure]:
    settings = {"max_connections": f"{max(counts) + 50}"}
    with EmbeddedPostgres(folder, settings=settings) as postgres:
        Migrator(postgres.dsn).up()
        cpu_ms = []
        for count in counts:
            delays, cost_ms = _announce(folder, postgres.dsn, count, announcements)
            cpu_ms.append((count, cost_ms))
            what = f"an announcement to {count} sessions that LISTEN"
            yield median_figure(f"bus.listen.{count}.last", f"{what}: until the last has it", "ms", delays)
            yield figure(f"bus.listen.{count}.cpu", f"{what}: CPU of PostgreSQL", "ms", cost_ms)
        yield from _extrapolated(cpu_ms[-2:])
        yield _reads(folder, postgres.dsn)


def _extrapolated(cpu_ms: Sequence[tuple[int, float]]) -> Iterator[Figure]:
    first, second = cpu_ms
    base_ms, each_ms = line_through(first, second)
    one_ms = base_ms + INSTANCES * each_ms
    what = f"an announcement to {INSTANCES:,} instances, extrapolated: CPU of PostgreSQL"
    yield figure("bus.listen.cpu_of_all", what, "ms", one_ms)
    what = f"heartbeats of {INSTANCES:,} instances, extrapolated: CPU of PostgreSQL"
    yield figure("bus.listen.heartbeats", what, "cores", INSTANCES / HEARTBEAT_EVERY_S * one_ms / 1_000)


def _announce(folder: Path, dsn: str, count: int, announcements: int) -> tuple[list[float], float]:
    """Return the ms of each announcement until the last listener had it, and the ms of processor time of each."""
    with ExitStack() as stack:
        sender = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        sessions = [stack.enter_context(psycopg.connect(dsn, autocommit=True)) for _ in range(count)]
        for session in sessions:
            session.execute("LISTEN bench")
        began_s = _postgres_cpu_s(folder)
        delays = []
        with closing(selectors.DefaultSelector()) as selector:
            for session in sessions:
                selector.register(session.fileno(), selectors.EVENT_READ, session)
            for _ in range(announcements):
                began = time.perf_counter()
                sender.execute("NOTIFY bench")
                _wait_for_all(selector, count)
                delays.append((time.perf_counter() - began) * 1_000)
        return delays, (_postgres_cpu_s(folder) - began_s) / announcements * 1_000


def _wait_for_all(selector: selectors.BaseSelector, count: int) -> None:
    """Read until each socket has had something; what it is does not matter."""
    told, until = set[int](), time.monotonic() + WITHIN_S
    while len(told) < count:
        assert time.monotonic() < until, f"{len(told)} of {count} were told"
        for key, _ in selector.select(1.0):
            os.read(key.fd, 65_536)
            told.add(key.fd)


def _subscribers(folder: Path, count: int, announcements: int) -> Iterator[Figure]:
    with valkey(folder) as server, ExitStack() as stack, closing(selectors.DefaultSelector()) as selector:
        for _ in range(count):
            subscriber = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            subscriber.sendall(b"SUBSCRIBE bench\r\n")
            subscriber.recv(65_536)
            selector.register(subscriber, selectors.EVENT_READ)
        client = stack.enter_context(server.client())
        began_s, delays = cpu_of_thread_s(server.process.pid), []
        for _ in range(announcements):
            began = time.perf_counter()
            client.publish("bench", "1")
            _wait_for_all(selector, count)
            delays.append((time.perf_counter() - began) * 1_000)
        cost_ms = (cpu_of_thread_s(server.process.pid) - began_s) / announcements * 1_000
    what = f"an announcement to {count:,} subscribers of Redis"
    yield median_figure("bus.redis.last", f"{what}: until the last has it", "ms", delays)
    yield figure("bus.redis.cpu", f"{what}: CPU of Redis", "ms", cost_ms)


def _reads(folder: Path, dsn: str) -> Figure:
    """Read one change as a thousand instances would."""
    fill(dsn, flags=1)
    with closing(Database(dsn)) as database:
        database.open()
        store = SnapshotStore(database)
        base = store.load()
        update = FlagUpdate(key="flag-1", changes={"rollout_percentage": 7})
        FlagStore(database, MutationRunner(database, KEYS)).update(update, Intent(caller=None, action="UpdateFlag"))
        began_s = _postgres_cpu_s(folder)
        for _ in range(READS):
            assert store.load_delta(base) is not base
        used_s = _postgres_cpu_s(folder) - began_s
    what = f"{READS:,} instances read one change: CPU of PostgreSQL"
    return figure("bus.reads", what, "s", used_s)


def _postgres_cpu_s(folder: Path) -> float:
    return sum(cpu_of_thread_s(pid) for pid in postgres_pids(folder))
