"""Admits calls to bounded pools of workers, or refuses them.

Each kind of call has its own pool, so that a slow or flooded kind does not take the workers of the others. The way of a
call, all on grpcio's serving thread until a worker takes it: `CallPool.submit`; held while the server drains (`hold`);
held until its message is here (`pending_calls`); admitted to the queue of its pool, or refused with RESOURCE_EXHAUSTED.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from gatekeeper_grpc.domain.errors import ResourceExhausted, Unavailable
from gatekeeper_grpc.transport.deadlines import Deadlines
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.transport.hold import CallHold
from gatekeeper_grpc.transport.pending_calls import PendingCalls
from gatekeeper_grpc.transport.slow_readers import SlowReaders
from gatekeeper_grpc.wire.status import status_from_error

_RETRY_AFTER_S = 1.0


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
    """Verifies and hashes the caller's own password. Apart from LOGIN, which anybody can flood."""
    CREDENTIALS = "credentials"
    """Hashes passwords that admins set. Not in LOGIN, which anybody can flood."""
    OPERATIONS = "operations"
    """Health checks, which work while every other pool is full. The default pool of the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSize:
    """How many calls run at once, and how many more may queue for a worker; the next one is refused."""

    workers: int
    queue: int


DEFAULT_SIZES: Mapping[PoolName, PoolSize] = MappingProxyType(
    {
        PoolName.EVALUATION: PoolSize(workers=4, queue=128),  # 4 beat 10 and 16 on two cores: the interpreter lock
        # Writes and admin streams may all wait for one lock: together they leave connections to the reads.
        PoolName.ADMIN_READ: PoolSize(workers=8, queue=64),
        PoolName.ADMIN_WRITE: PoolSize(workers=4, queue=64),
        PoolName.ADMIN_STREAMS: PoolSize(workers=4, queue=16),
        PoolName.BULK: PoolSize(workers=16, queue=32),
        PoolName.REFLECTION: PoolSize(workers=4, queue=16),
        PoolName.WATCH: PoolSize(workers=2, queue=1_000),
        PoolName.LOGIN: PoolSize(workers=1, queue=8),
        PoolName.REFRESH: PoolSize(workers=2, queue=32),
        PoolName.LOGOUT: PoolSize(workers=1, queue=16),
        PoolName.OWN_PASSWORD: PoolSize(workers=1, queue=8),
        PoolName.CREDENTIALS: PoolSize(workers=1, queue=32),
        PoolName.OPERATIONS: PoolSize(workers=2, queue=64),
    }
)


# grpcio needs a future to count calls for `maximum_concurrent_rpcs`. That limit counts streams and refuses health
# checks, so the pools bound the work instead, and all calls share one finished future.
_SETTLED: Future[None] = Future()
_SETTLED.set_result(None)


class CallPool(ThreadPoolExecutor):
    """The workers of one pool and their bounded queue. Only grpcio submits to it, on its one serving thread.

    `submit` takes constant time and never raises: an exception would end the serving thread, and so the server.
    """

    def __init__(self, name: PoolName, size: PoolSize, *, pending_calls: PendingCalls, hold: CallHold) -> None:
        super().__init__(size.workers, thread_name_prefix=f"gatekeeper-{name}")
        self._size = size
        self._lock = threading.Lock()  # guards _in_flight
        self._in_flight = 0
        self._pending_calls = pending_calls
        self._hold = hold
        # Made once: a flood wins if refusing a call costs more than serving it.
        full = ResourceExhausted(f"all {name} workers are busy; retry later", retry_after_s=_RETRY_AFTER_S)
        self._full = status_from_error(full, "")
        self._closed = status_from_error(Unavailable("the server is shutting down"), "")
        self.refused = 0
        """Calls refused because the queue was full; only the serving thread writes it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Future[Any]:
        """Take a call that has arrived."""
        call = ArrivedCall(fn, args)
        if not (self._hold.is_holding and self._hold.hold(call, self._receive)):
            self._receive(call)
        return _SETTLED

    def _receive(self, call: ArrivedCall) -> None:
        """Admit `call` at once, or when its first message is here if its behaviour asks for that."""
        within_s = getattr(call.behaviour, "first_message_within_s", None)
        if within_s is None:
            self._admit(call)
        else:
            self._pending_calls.hold(call, within_s=within_s, admit=self._admit)

    def _admit(self, call: ArrivedCall) -> None:
        """Queue `call` for a worker; refuse it if the queue is full."""
        if not self._take_slot():
            self.refused += 1
            call.refuse(self._full)
            return
        try:
            super().submit(self._serve, call)
        except RuntimeError:  # Closed; or no thread can start now, and the call stays queued for the next worker.
            if self._shutdown:
                self._release_slot()
                call.refuse(self._closed)

    def _serve(self, call: ArrivedCall) -> None:
        try:
            call.serve()
        finally:
            self._release_slot()

    def _take_slot(self) -> bool:
        with self._lock:
            has_slot = self._in_flight < self._size.workers + self._size.queue
            self._in_flight += has_slot
            return has_slot

    def _release_slot(self) -> None:
        with self._lock:
            self._in_flight -= 1

    @property
    def in_flight(self) -> int:
        """Calls that run or queue."""
        return self._in_flight

    def is_saturated(self) -> bool:
        """Return whether calls queue for a worker."""
        return self._in_flight > self._size.workers

    def run_on_worker(self, work: Callable[[], None]) -> None:
        """Run `work` on a worker, however long the queue is; drop it if the pool is closed."""
        try:
            super().submit(work)
        except RuntimeError:
            return


class CallPools(Mapping[PoolName, CallPool]):
    """The pools of a server, and what stops clients from occupying their workers.

    Threads start when they are needed.

    Args:
        sizes: One size for each pool.
        max_pending_calls: How many calls may be without a message; one more ends the oldest.
    """

    def __init__(self, sizes: Mapping[PoolName, PoolSize] = DEFAULT_SIZES, *, max_pending_calls: int = 2_000) -> None:
        self._deadlines = Deadlines()
        self.pending_calls = PendingCalls(self._deadlines, capacity=max_pending_calls)
        self.slow_readers = SlowReaders(self._deadlines)
        self.hold = CallHold()
        self._pools = {
            name: CallPool(name, size, pending_calls=self.pending_calls, hold=self.hold) for name, size in sizes.items()
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
