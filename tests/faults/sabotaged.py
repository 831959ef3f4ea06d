"""Runs a `gatekeeper` command with a mitigation switched off: `python -m tests.faults.sabotaged SABOTAGE COMMAND ...`.

For twins: the same test on a sabotaged fleet must see the violation that the mitigation prevents. Nothing here ships.
"""

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import grpc
import psycopg
import redis

from gatekeeper_grpc import draws
from gatekeeper_grpc.auth import certificates
from gatekeeper_grpc.cache.refresher import Refresher
from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.cache.snapshot_writer import SnapshotWriter
from gatekeeper_grpc.cli.main import main
from gatekeeper_grpc.domain import evaluator
from gatekeeper_grpc.domain.bucketing import BUCKETS
from gatekeeper_grpc.domain.errors import NotFound
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.draws import python as python_draws
from gatekeeper_grpc.embedded.disk_reserve import DiskReserve
from gatekeeper_grpc.interceptors import chain
from gatekeeper_grpc.interceptors.policy import POLICIES
from gatekeeper_grpc.lifecycle import limits, server
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.redis_bus.bus import RedisBus
from gatekeeper_grpc.store import flags
from gatekeeper_grpc.store.postgres import database
from gatekeeper_grpc.store.postgres.database import Connection, Database
from gatekeeper_grpc.store.postgres.errors import translated_errors
from gatekeeper_grpc.store.postgres.hang_watch import HangWatch
from gatekeeper_grpc.store.snapshots.epochs import Epochs
from gatekeeper_grpc.store.snapshots.loader import SnapshotStore
from gatekeeper_grpc.store.snapshots.notifications import RevisionListener
from gatekeeper_grpc.transport import admission, listener
from gatekeeper_grpc.transport.admission import CallPool, PoolName
from gatekeeper_grpc.transport.connections import ConnectionSweeper
from gatekeeper_grpc.transport.drain import GoawayDrain, QuietDrain
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall, GrpcResponseStream
from gatekeeper_grpc.transport.receive_slots import ReceiveSlots
from gatekeeper_grpc.transport.shares import PoolSize, Slots
from gatekeeper_grpc.wire import status

# Any below: a replacement takes the arguments of the method that it replaces.
_SLOW_LOADS_S = 0.05
_SLOW_COMMITS_S = 0.2
_SLOW_ANSWERS_S = 60.0
_WATCHER_TIMEOUT_S = 60.0


def slow_loads() -> None:
    """Every load takes a while, so that loads overtake each other; harmless, unless the revision guard is off."""

    def slowly(load: Callable[..., Snapshot]) -> Callable[..., Snapshot]:
        def slow(*args: Any, **kwargs: Any) -> Snapshot:
            snapshot = load(*args, **kwargs)
            time.sleep(random.uniform(0, _SLOW_LOADS_S))
            return snapshot

        return slow

    _put(SnapshotStore, load=slowly(SnapshotStore.load), load_since=slowly(SnapshotStore.load_since))


def no_revision_guard() -> None:
    """The cache takes every snapshot, however old it is."""
    slow_loads()
    publish = SnapshotCache.publish

    def unguarded(cache: SnapshotCache, snapshot: Snapshot, **rest: Any) -> bool:
        cache._snapshot = None
        return publish(cache, snapshot, **rest)

    _put(SnapshotCache, publish=unguarded)


def any_min_revision() -> None:
    """`min_revision` is ignored."""
    _put(SnapshotCache, at_least=lambda cache, _revision, **_as: cache.current())


def any_etag() -> None:
    """Etags are not compared."""
    _put(flags, check_etag=lambda *_args, **_kwargs: None)


def audit_apart() -> None:
    """A mutation is not one transaction: each statement is committed by itself."""

    @contextmanager
    def write(pool: Database, *, pipelined: bool = False) -> Iterator[Connection]:
        with translated_errors(), pool._connection() as conn:
            conn.read_only = False
            yield conn

    _put(Database, write=write)


def early_answers() -> None:
    """A write is acknowledged before it is committed, and without waiting until its own instance shows it."""

    @contextmanager
    def write(pool: Database, *, pipelined: bool = False) -> Iterator[Connection]:
        conn = psycopg.connect(pool.dsn)
        yield conn
        threading.Thread(target=_commit_late, args=(conn,)).start()

    _put(Database, write=write)
    _put(Refresher, refresh_after_write=lambda _refresher, _revision: None)


def _commit_late(conn: Connection) -> None:
    time.sleep(_SLOW_COMMITS_S)
    conn.commit()
    conn.close()


def slow_answers() -> None:
    """A write is answered a while after its commit, so that a kill can fall in between; harmless."""
    refresh = Refresher.refresh_after_write

    def slowly(refresher: Refresher, revision: int) -> None:
        time.sleep(_SLOW_ANSWERS_S)
        refresh(refresher, revision)

    _put(Refresher, refresh_after_write=slowly)


def asks_database() -> None:
    """Each evaluation asks the database first."""
    _nothing_at_once()
    build = GatekeeperServer.__init__

    def sabotaged(server: GatekeeperServer, *args: Any, **kwargs: Any) -> None:
        build(server, *args, **kwargs)
        at_least = server.cache.at_least

        def ask(revision: int, *, asked_as: str = "") -> Snapshot:
            with server.database.read():
                return at_least(revision, asked_as=asked_as)

        server.cache.at_least = ask  # type: ignore[method-assign]

    _put(GatekeeperServer, __init__=sabotaged)


def no_shares() -> None:
    """A pool is first come, first served."""
    _put(PoolSize, workers_for_one=property(lambda size: size.workers))
    _put(Slots, _gives_way_to=lambda _slots, _call: None)
    _put(admission, DEFAULT_SIZES={name: replace(size, kept=0) for name, size in admission.DEFAULT_SIZES.items()})
    _put(limits, DEFAULT_SIZES=admission.DEFAULT_SIZES)


def first_come_logins() -> None:
    """The queue of logins is short, and the first login is served first."""
    no_shares()
    sizes = {**admission.DEFAULT_SIZES, PoolName.LOGIN: PoolSize(workers=1, queue=8)}
    _put(admission, DEFAULT_SIZES=sizes)
    _put(limits, DEFAULT_SIZES=sizes)


def one_pool_of_streams() -> None:
    """Streams that anybody may open share a pool with those of admins."""
    no_shares()
    pools = {PoolName.BULK: PoolName.ADMIN_STREAMS, PoolName.REFLECTION: PoolName.ADMIN_STREAMS}
    _put(chain, POLICIES={name: replace(row, pool=pools.get(row.pool, row.pool)) for name, row in POLICIES.items()})


def messages_on_workers() -> None:
    """A call of an admin waits for its message on a worker."""
    no_shares()
    receive = CallPool._receive

    def at_once(pool: CallPool, call: ArrivedCall) -> None:
        if pool._name not in {PoolName.ADMIN_READ, PoolName.ADMIN_WRITE}:
            receive(pool, call)
            return
        call.note(call.behaviour.arrive(call))
        pool._admit(call)

    _put(CallPool, _receive=at_once)


def no_drain() -> None:
    """A server that stops does not have its clients disconnect first."""
    for drain in (GoawayDrain, QuietDrain):
        _put(drain, run=lambda _drain, _servers, **_limits: 0)


def waits_for_watchers() -> None:
    """A send to a watcher waits until the watcher has made room."""
    send = GrpcResponseStream.send

    def wait(stream: GrpcResponseStream, message: bytes, sent: Callable[[], None]) -> bool:
        made_room = threading.Event()

        def note() -> None:
            sent()
            made_room.set()

        is_open = send(stream, message, note)
        made_room.wait(_WATCHER_TIMEOUT_S)
        return is_open

    _put(GrpcResponseStream, send=wait)


def redis_in_the_way() -> None:
    """A write is published to Redis before it is answered, without a timeout."""
    client = redis.Redis.from_url(os.environ["REDIS_URL"], socket_timeout=None)
    _put(RedisBus, announce=lambda _bus, revision: client.publish("revision", revision))


def nothing_kept() -> None:
    """No snapshot is kept."""
    _put(SnapshotWriter, write_if_due=lambda _writer: None)


def untranslated_errors() -> None:
    """Database errors are not translated."""
    _put(database, translated_errors=nullcontext)


def any_certificate() -> None:
    """A certificate is taken that is not valid, or has another key."""
    _put(certificates, _check_key=lambda _key, _of_certificate: None, _check_time=lambda _not_before, _not_after: None)


def no_row_for_not_found() -> None:
    """The table of statuses lacks an error kind."""
    _put(status, CODES={kind: code for kind, code in status.CODES.items() if kind is not NotFound})


def no_hang_watch() -> None:
    """A database that hangs is not detected."""
    _put(HangWatch, start=lambda _watch, **_settings: None)


def no_loss_detection() -> None:
    """A database that is older than what was served is not moved on."""
    _put(Epochs, start_if_lost=lambda _restore, _revision, _hash=b"": None)


def never_stale() -> None:
    """No answer is called stale."""
    _put(SnapshotCache, is_stale=lambda _cache: False)


def deaf() -> None:
    """No announcement is received."""

    def wait(timeout_s: float) -> list[int]:
        time.sleep(min(timeout_s, 0.25))
        return []

    @contextmanager
    def listening(_listener: RevisionListener) -> Iterator[Callable[[float], list[int]]]:
        yield wait

    _put(RevisionListener, listening=listening)


def all_messages_at_once() -> None:
    """The messages of all calls are received at once."""
    _put(ReceiveSlots, _may_start=lambda _slots, _owner, _punctuality: True)


def no_connection_gives_way() -> None:
    """However many connections there are, none is closed."""
    _put(ConnectionSweeper, check=lambda _sweeper: None)


def no_connection_cap() -> None:
    """There may be any number of connections."""
    no_connection_gives_way()
    make = listener.new_server

    def uncapped(*args: Any, max_connections: int | None = None, **options: Any) -> grpc.Server:
        return make(*args, **options)

    _put(server, new_server=uncapped)


def first_come_calls() -> None:
    """New calls are taken in the order in which they came, and each takes a worker."""
    _nothing_at_once()
    _put(listener, take_in_turn=lambda *_: None)


def short_backlog() -> None:
    """New calls wait in grpcio, which drops some of them as soon as there are a hundred."""
    first_come_calls()
    _put(listener.NewCallLimits, of_each=lambda limits, _listeners: replace(limits, backlog=100))


def patient_with_locks() -> None:
    """A lock is waited for as long as the caller waits."""
    _put(database, _LOCK_TIMEOUT_S=60.0)


def no_disk_reserve() -> None:
    """A database gets no room to start with when the disk is full."""
    _put(DiskReserve, take=lambda _reserve: False)


def random_buckets() -> None:
    """Users are put in buckets by Python's own hash, which differs between processes."""
    _put(evaluator, bucket_of=lambda user, salt: hash((user, salt)) % BUCKETS)
    _put(python_draws, new_hash=_PythonsHash)
    _put(draws, use=lambda *, native, library=None: None)  # noqa: ARG005 - the kernel has a hash of its own


class _PythonsHash:
    def __init__(self, data: bytes) -> None:
        self._hash = hash(data) % (1 << 32)

    def digest(self) -> bytes:
        return self._hash.to_bytes(4, "big").ljust(16, b"\0")


SABOTAGES = {
    sabotage.__name__: sabotage
    for sabotage in (
        slow_loads,
        no_revision_guard,
        any_min_revision,
        any_etag,
        audit_apart,
        early_answers,
        slow_answers,
        asks_database,
        no_shares,
        first_come_logins,
        one_pool_of_streams,
        messages_on_workers,
        no_drain,
        waits_for_watchers,
        redis_in_the_way,
        nothing_kept,
        untranslated_errors,
        any_certificate,
        no_row_for_not_found,
        no_hang_watch,
        no_loss_detection,
        never_stale,
        deaf,
        all_messages_at_once,
        no_connection_gives_way,
        no_connection_cap,
        first_come_calls,
        short_backlog,
        patient_with_locks,
        no_disk_reserve,
        random_buckets,
    )
}


def _nothing_at_once() -> None:
    os.environ["GATEKEEPER_ANSWER_AT_ONCE"] = "false"


def _put(owner: Any, **replacements: Any) -> None:
    """Replace attributes that exist: a mitigation that was renamed would otherwise stay on, unnoticed."""
    for name, replacement in replacements.items():
        assert hasattr(owner, name), f"{owner} has no {name} any more"
        setattr(owner, name, replacement)


if __name__ == "__main__":
    SABOTAGES[sys.argv.pop(1)]()
    main()
