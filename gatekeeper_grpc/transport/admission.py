"""Admits calls to bounded pools of workers, or refuses them.

Each kind of call has its own pool, so that a slow or flooded kind does not take the workers of the others. The way of a
call, all on grpcio's serving thread until a worker takes it: handed over in turn of the addresses that call
(`grpcio_internals.CallsInTurn`) to `CallPool.take`; held while the server drains (`hold`); refused if it has waited
too long for its turn; authenticated by its metadata (`arrival`), and refused if its method needs a token that it does
not have, if its caller has called too often (`interceptors/rate_limits.py`), or if its connection has too many streams
(`stream_limits`); held until its message is here (`pending_calls`); answered, if its method can do so at once; given a
slot in its pool (`shares`), or refused with RESOURCE_EXHAUSTED.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import grpc
import structlog

from gatekeeper_grpc.domain.errors import (
    GatekeeperError,
    RateLimited,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from gatekeeper_grpc.transport.deadlines import Deadlines
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.transport.hold import CallHold
from gatekeeper_grpc.transport.login_slots import LoginSlots
from gatekeeper_grpc.transport.open_streams import OpenStreams
from gatekeeper_grpc.transport.pending_calls import PendingByTrust, PendingCalls, PendingLimits
from gatekeeper_grpc.transport.shares import PoolSize, Slots
from gatekeeper_grpc.transport.slow_readers import SlowReaders
from gatekeeper_grpc.transport.stream_limits import StreamLimit, streams_of_connection
from gatekeeper_grpc.wire.status import status_from_error

HALF = 0.5
"""The share of one owner in pools whose calls may take long."""

_RETRY_AFTER_S = 1.0
# A client that has waited as long will not wait much longer. Those who came later are served instead.
_MAX_WAIT_S = 2.0
# The process has stood still if so few wait for so long. They are served at once.
_FEW_CALLS = 128
_REMEMBERED_STATUSES = 1_024

_log = structlog.get_logger(__name__)


class PoolName(StrEnum):
    """Which calls share workers."""

    EVALUATION = "evaluation"
    """Evaluates flags in memory, in less than a millisecond."""
    ADMIN_READ = "admin_read"
    """Reads the database, for a caller with an access token."""
    ADMIN_WRITE = "admin_write"
    """Changes the database, one mutation after the other. No read waits behind them."""
    ADMIN_STREAMS = "admin_streams"
    """Imports, exports and verifications: each keeps a worker while it is open."""
    BULK = "bulk"
    """Bulk evaluations: each keeps a worker while it is open, and anybody may open one."""
    PREVIEW = "preview"
    """Previews of changes: bulk evaluations of callers with a token, which share no workers with strangers."""
    REFLECTION = "reflection"
    """Clients that read the contract: each keeps a worker while it is open, and anybody may open one."""
    WATCH = "watch"
    """Opens and ends streams that keep no worker: thousands at once, when watchers reconnect from another instance."""
    LOGIN = "login"
    """Uses a core for 220 ms a call (bcrypt), and anybody may call it."""
    REFRESH = "refresh"
    """Exchanges refresh tokens. Not in a pool of calls with a token, because anybody may call it."""
    LOGOUT = "logout"
    """Ends logins. Apart from REFRESH, so that a flood of one does not stop the other."""
    OWN_PASSWORD = "own_password"  # noqa: S105 - the name of a pool
    """Verifies and hashes the caller's own password. Apart from LOGIN; anybody may call it without a token."""
    CREDENTIALS = "credentials"
    """Hashes passwords that admins set. Not in LOGIN, which anybody can flood."""
    OPERATIONS = "operations"
    """Health checks, which work while every other pool is full. The default pool of the server."""


class Refusal(StrEnum):
    """Why a call was refused before a worker took it: a label of the metric."""

    FULL = "full"
    """Every slot of the pool was taken."""
    SHARE = "share"
    """Others waited, and this address, client key or admin user had the most calls. The stream may have been open."""
    WAITED = "waited"
    """It had its turn too late: its address calls more than the instance can do, or everybody together does."""
    UNAUTHENTICATED = "unauthenticated"
    """It had no valid credentials."""
    LOCKED_OUT = "locked_out"
    """It was a login of an address that has to wait after failed ones."""
    RATE_LIMITED = "rate_limited"
    """Its address, client key or admin user has called too often."""
    STREAMS = "streams"
    """It was a stream, and its connection, or its address, had as many open as it may."""


DEFAULT_SIZES: Mapping[PoolName, PoolSize] = MappingProxyType(
    {
        PoolName.EVALUATION: PoolSize(workers=4, queue=128),  # 4 beat 10 and 16 on two cores: the interpreter lock
        # Writes and admin streams may all wait for one lock: together they leave connections to the reads.
        PoolName.ADMIN_READ: PoolSize(workers=8, queue=64, share=HALF),
        PoolName.ADMIN_WRITE: PoolSize(workers=4, queue=64, share=HALF),
        PoolName.ADMIN_STREAMS: PoolSize(workers=4, queue=16, share=HALF),
        PoolName.BULK: PoolSize(workers=16, queue=32, share=HALF, is_preemptive=True),
        PoolName.PREVIEW: PoolSize(workers=4, queue=16, share=HALF, is_preemptive=True),
        PoolName.REFLECTION: PoolSize(workers=4, queue=16, share=HALF, is_preemptive=True),
        PoolName.WATCH: PoolSize(workers=2, queue=1_000),
        # An attacker whose logins all fit has to wait for each; one who is refused can try from the next address.
        PoolName.LOGIN: PoolSize(workers=1, queue=72, kept=8),
        # Milliseconds each: a long queue is short in time, and costs an attacker more addresses.
        PoolName.REFRESH: PoolSize(workers=2, queue=256),
        PoolName.LOGOUT: PoolSize(workers=1, queue=128),
        PoolName.OWN_PASSWORD: PoolSize(workers=1, queue=16, kept=8),
        PoolName.CREDENTIALS: PoolSize(workers=1, queue=32),
        PoolName.OPERATIONS: PoolSize(workers=2, queue=64),
    }
)


_PENDING = PendingLimits()

# grpcio needs a future to count calls for `maximum_concurrent_rpcs`. That limit counts streams and refuses health
# checks, so the pools bound the work instead, and all calls share one finished future.
_SETTLED: Future[None] = Future()
_SETTLED.set_result(None)


class CallPool(ThreadPoolExecutor):
    """The workers of one pool and its slots. Only the one serving thread of each server has it take calls.

    `take` takes constant time and never raises: an exception would end the serving thread, and so the server.

    A worker serves call after call until none is left that may run, so the queue of the executor is short: it only
    starts workers.
    """

    def __init__(
        self,
        name: PoolName,
        size: PoolSize,
        *,
        pending: PendingByTrust,
        stream_limits: Sequence[StreamLimit],
        hold: CallHold,
    ) -> None:
        super().__init__(size.workers, thread_name_prefix=f"gatekeeper-{name}")
        self._name = name
        self._size = size
        self._lock = threading.Lock()  # guards the five below
        self._slots = LoginSlots(size) if size.kept else Slots(size)
        self._errands: deque[_Errand] = deque()
        self._workers = 0
        self._is_short_of_workers = False
        self._refused: dict[Refusal, int] = dict.fromkeys(Refusal, 0)
        self._pending = pending
        self._stream_limits = stream_limits
        self._hold = hold
        self._called_at = -math.inf
        # Made once: a flood wins if refusing a call costs more than serving it.
        self._full = status_from_error(_full(f"all {name} workers are busy; retry later"), "")
        self._late = status_from_error(_full("too many calls of this address wait for their turn; retry later"), "")
        self._closed = status_from_error(Unavailable("the server is shutting down"), "")
        self._over_share = lru_cache(maxsize=_REMEMBERED_STATUSES)(partial(_status_of_share, name))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Future[Any]:
        """Take a call that grpcio deals with."""
        _in_pool, event, state, behaviour, *_ = args
        self.take(ArrivedCall(event, state, behaviour, partial(fn, *args)))
        return _SETTLED

    def take(self, call: ArrivedCall) -> None:
        """Take a call that has arrived."""
        self._called_at = call.arrived_at
        if not (self._hold.is_holding and self._hold.hold(call, self._receive)):
            self._receive(call)

    def _receive(self, call: ArrivedCall) -> None:
        """Find out who calls; then admit `call` when its first message is here, without a worker that waits for it."""
        if call.turn.waited_s > _MAX_WAIT_S and call.turn.waiting > _FEW_CALLS:
            self._count(Refusal.WAITED)
            call.refuse(self._late)
            return
        try:
            call.note(call.behaviour.arrive(call))
        except Exception as error:  # noqa: BLE001 - see the class
            self._refuse(call, error)
            return
        if call.behaviour.is_stream and (limit := self._limit_reached_by(call)):
            self._count(Refusal.STREAMS)
            call.refuse(limit.refusal)
        elif call.arrival.is_denied:
            self._admit(call)
        else:
            within_s = call.behaviour.first_message_within_s
            self._pending.of(call.arrival.owner).hold(call, within_s=within_s, admit=self._check_and_admit)

    def _limit_reached_by(self, call: ArrivedCall) -> StreamLimit | None:
        return next((limit for limit in self._stream_limits if not limit.add(call)), None)

    def _check_and_admit(self, call: ArrivedCall) -> None:
        """Admit `call`, whose first message is here, unless its method refuses or answers the message at sight."""
        try:
            call.behaviour.check_message(call)
        except Exception as error:  # noqa: BLE001 - see the class
            self._refuse(call, error)
        else:
            if not call.behaviour.answer(call):
                self._admit(call)

    def _admit(self, call: ArrivedCall) -> None:
        """Queue `call` for a worker; if the pool is full, refuse it or the one that gives way to it."""
        call.make_waitable()
        if self._shutdown:
            call.refuse(self._closed)
            return
        with self._lock:
            loser = self._slots.add(call)
            held = 0 if loser is None else self._slots.held_by(loser.arrival.owner)
            needs_worker = loser is not call and self._needs_worker()
            preempted = None if loser is call else self._slots.preempted_by(call.arrival.owner)
        if loser is not None:
            self._refuse_for(loser, held=held)
        if preempted is not None:
            self._preempt(preempted)
        if needs_worker:
            self._start_worker()

    def _preempt(self, call: ArrivedCall) -> None:
        """End a running stream, for others wait and its owner has the most workers. Its own worker ends it."""
        kind = call.arrival.owner.kind
        if call.end_soon(_full(f"this {kind} has the most open {self._name} calls, and others wait; retry later")):
            self._count(Refusal.SHARE)

    def _refuse_for(self, call: ArrivedCall, *, held: int) -> None:
        """Refuse a call for which there is no slot, whose owner has `held` others."""
        self._count(Refusal.SHARE if held > 1 else Refusal.FULL)
        call.refuse(self._over_share(call.arrival.owner.kind, held) if held > 1 else self._full)

    def _refuse(self, call: ArrivedCall, error: Exception) -> None:
        """Refuse a call for what its method found at its arrival."""
        if isinstance(error, RateLimited):
            self._count(Refusal.RATE_LIMITED)
        elif isinstance(error, ResourceExhausted):
            self._count(Refusal.LOCKED_OUT)
        elif isinstance(error, Unauthenticated):
            self._count(Refusal.UNAUTHENTICATED)
        elif not isinstance(error, GatekeeperError):
            _log.exception("arrival_failed", pool=self._name, exc_info=error)
        call.refuse(status_from_error(error, ""))

    def _count(self, reason: Refusal) -> None:
        with self._lock:
            self._refused[reason] += 1

    def _needs_worker(self) -> bool:
        """Return whether one more worker may serve what waits, and count it; with the lock held."""
        needs = self._workers < self._size.workers or self._is_short_of_workers
        self._workers += needs
        return needs

    def _start_worker(self) -> None:
        try:
            super().submit(self._serve_waiting)
        except RuntimeError:  # Closed; or no thread can start now, and what waits stays queued for the next worker.
            self._is_short_of_workers = True
            if self._shutdown:
                self._refuse_waiting()
        else:
            self._is_short_of_workers = False

    def _serve_waiting(self) -> None:
        """Serve calls until none is left that may run."""
        finished: ArrivedCall | _Errand | None = None
        while (work := self._next(finished)) is not None:
            try:
                work.serve()
            except Exception:  # noqa: BLE001 - grpcio reports the errors of methods itself; the worker must go on
                _log.exception("work_failed", pool=self._name)
            finished = work

    def _next(self, finished: "ArrivedCall | _Errand | None") -> "ArrivedCall | _Errand | None":
        with self._lock:
            if isinstance(finished, ArrivedCall):
                self._slots.finish(finished)
            if self._errands:
                return self._errands.popleft()
            call = None if self._shutdown else self._slots.start_next()
            self._workers -= call is None
            return call

    def _refuse_waiting(self) -> None:
        with self._lock:
            calls = self._slots.take_all()
        for call in calls:
            call.refuse(self._closed)

    @property
    def refused(self) -> Mapping[Refusal, int]:
        """How many calls were refused before a worker took them, by reason."""
        return self._refused

    @property
    def in_flight(self) -> int:
        """Calls that run or queue."""
        return self._slots.running + self._slots.waiting

    def idle_s(self) -> float:
        """Return for how many seconds no call has come; infinity before the first one."""
        return time.monotonic() - self._called_at

    def is_saturated(self) -> bool:
        """Return whether calls queue for a worker."""
        return self._slots.waiting > 0

    def run_on_worker(self, work: Callable[[], None]) -> None:
        """Run `work` on the next free worker, however long the queue is; drop it if the pool is closed."""
        with self._lock:
            self._errands.append(_Errand(work))
            needs_worker = self._needs_worker()
        if needs_worker:
            self._start_worker()


@dataclass(frozen=True, slots=True)
class _Errand:
    """Work that is no call and needs no slot."""

    serve: Callable[[], None]


def _full(text: str) -> ResourceExhausted:
    return ResourceExhausted(text, retry_after_s=_RETRY_AFTER_S)


def _status_of_share(pool: PoolName, kind: str, held: int) -> grpc.Status:
    text = f"this {kind} already has {held} {pool} calls, and others wait; retry later"
    return status_from_error(_full(text), "")


class CallPools(Mapping[PoolName, CallPool]):
    """The pools of a server, and what stops clients from occupying their workers.

    Threads start when they are needed.

    Args:
        sizes: One size for each pool.
        pending: How much calls of strangers may hold that have no worker yet; calls with credentials as much again.
        watchers: Limits the open WatchFlags of each client; None: nothing does.
    """

    def __init__(
        self,
        sizes: Mapping[PoolName, PoolSize] = DEFAULT_SIZES,
        *,
        pending: PendingLimits = _PENDING,
        watchers: StreamLimit | None = None,
    ) -> None:
        self._deadlines = Deadlines()
        self.pending = PendingByTrust(
            strangers=PendingCalls(self._deadlines, pending), known=PendingCalls(self._deadlines, pending)
        )
        self.slow_readers = SlowReaders(self._deadlines)
        self.open_streams = OpenStreams(self._deadlines)
        self.hold = CallHold()
        streams = [streams_of_connection()]
        limits = {PoolName.WATCH: [*streams, watchers] if watchers else streams}
        self._pools = {
            name: CallPool(
                name,
                size,
                pending=self.pending,
                stream_limits=limits.get(name, streams),
                hold=self.hold,
            )
            for name, size in sizes.items()
        }

    def __getitem__(self, name: PoolName) -> CallPool:
        return self._pools[name]

    def __iter__(self) -> Iterator[PoolName]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def close(self) -> None:
        """Refuse new calls, drop queued ones, let running ones end; does not wait. Call it after `server.stop`."""
        self._deadlines.close()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
