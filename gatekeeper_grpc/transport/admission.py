"""Named, bounded pools of workers: a kind of call that is slow or flooded leaves the workers of the others alone."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any

from gatekeeper_grpc.domain.errors import ResourceExhausted, Unavailable
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.transport.hold import CallHold
from gatekeeper_grpc.transport.pending_calls import PendingCalls
from gatekeeper_grpc.transport.slow_readers import SlowReaders
from gatekeeper_grpc.wire.status import status_from_error

_RETRY_AFTER_S = 1.0


class PoolName(StrEnum):
    """Who shares workers with whom."""

    EVALUATION = "evaluation"
    """Answers from memory, in far less than a millisecond."""
    ADMIN = "admin"
    """Waits for the database."""
    STREAMS = "streams"
    """Keeps a worker for as long as the stream is open."""
    WATCH = "watch"
    """Opens and ends streams that keep no worker: thousands at once, when watchers come back from another instance."""
    LOGIN = "login"
    """Burns a core for 220 ms a call (bcrypt)."""
    CREDENTIALS = "credentials"
    """Hashes passwords that admins set: apart from logins, which anybody can flood."""
    OPERATIONS = "operations"
    """Health: answers when everything else is full. The server's default pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSize:
    """How many calls run at once, and how many more may wait for a worker; the next one is refused."""

    workers: int
    queue: int


DEFAULT_SIZES: Mapping[PoolName, PoolSize] = MappingProxyType(
    {
        PoolName.EVALUATION: PoolSize(workers=4, queue=128),  # 4 beat 10 and 16 on two cores: the interpreter lock
        PoolName.ADMIN: PoolSize(workers=8, queue=64),
        PoolName.STREAMS: PoolSize(workers=32, queue=32),
        PoolName.WATCH: PoolSize(workers=2, queue=1_000),
        PoolName.LOGIN: PoolSize(workers=1, queue=8),
        PoolName.CREDENTIALS: PoolSize(workers=1, queue=32),
        PoolName.OPERATIONS: PoolSize(workers=2, queue=64),
    }
)


def _settled() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


# grpcio wants a future to count calls for `maximum_concurrent_rpcs`. That limit counts streams and turns health checks
# away, so the pools bound the work instead, and one finished future does for every call.
_SETTLED = _settled()


class CallPool(ThreadPoolExecutor):
    """The workers of one pool and their bounded queue. Only grpcio submits to it, on its one serving thread.

    `submit` takes constant time and never raises: an exception would end the serving thread, and with it the server.
    """

    def __init__(self, name: PoolName, size: PoolSize, reception: PendingCalls, gate: CallHold) -> None:
        super().__init__(size.workers, thread_name_prefix=f"gatekeeper-{name}")
        self._size = size
        self._lock = threading.Lock()  # guards _in_flight
        self._in_flight = 0  # calls that run or queue
        self._reception = reception
        self._gate = gate
        # Built once: refusing must stay cheaper than serving, or a flood wins.
        full = ResourceExhausted(f"all {name} workers are busy; retry later", retry_after_s=_RETRY_AFTER_S)
        self._full = status_from_error(full, "")
        self._closed = status_from_error(Unavailable("the server is shutting down"), "")
        self.refused = 0
        """Calls turned away because the queue was full; written by the serving thread only."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_kwargs: Any) -> Future[Any]:
        """Queue a call for a worker: at once, or when its first message is here if its behaviour asks for that.

        A call that finds the queue full is refused with RESOURCE_EXHAUSTED, without a worker.
        """
        call = ArrivedCall.from_submission(args)
        admit = partial(self._admit, call, fn, args)
        if not (self._gate.is_shut and self._gate.keep(call, partial(self._receive, call, admit))):
            self._receive(call, admit)
        return _SETTLED

    @property
    def in_flight(self) -> int:
        """Calls that run or queue."""
        return self._in_flight

    def others_wait(self) -> bool:
        """Tell whether calls queue for a worker."""
        return self._in_flight > self._size.workers

    def hand_over(self, work: Callable[[], None]) -> None:
        """Run `work` on a worker, whatever the queue's length; drop it when the pool is closed."""
        try:
            super().submit(work)
        except RuntimeError:
            return

    def _receive(self, call: ArrivedCall, admit: Callable[[], None]) -> None:
        within_s = getattr(call.behaviour, "first_message_within_s", None)
        if within_s is None:
            admit()
        else:
            self._reception.hold(call, within_s=within_s, admit=admit)

    def _admit(self, call: ArrivedCall, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if not self._take_place():
            self.refused += 1
            call.refuse(self._full)
            return
        try:
            super().submit(self._serve, fn, args)
        except RuntimeError:  # The pool is closed.
            self._leave_place()
            call.refuse(self._closed)

    def _serve(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            fn(*args)
        finally:
            self._leave_place()

    def _take_place(self) -> bool:
        with self._lock:
            has_place = self._in_flight < self._size.workers + self._size.queue
            self._in_flight += has_place
            return has_place

    def _leave_place(self) -> None:
        with self._lock:
            self._in_flight -= 1


class CallPools(Mapping[PoolName, CallPool]):
    """All pools of a server, and what keeps clients from holding their workers."""

    def __init__(self, sizes: Mapping[PoolName, PoolSize] = DEFAULT_SIZES, *, held_calls: int = 2_000) -> None:
        """Make the pools; workers start when they are needed.

        Args:
            sizes: One size for each name.
            held_calls: How many calls without a message are held before the oldest is ended.
        """
        self.reception = PendingCalls(capacity=held_calls)
        self.slow_readers = SlowReaders()
        self.gate = CallHold()
        self._pools = {name: CallPool(name, sizes[name], self.reception, self.gate) for name in PoolName}

    def __getitem__(self, name: PoolName) -> CallPool:
        return self._pools[name]

    def __iter__(self) -> Iterator[PoolName]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def close(self) -> None:
        """Refuse further calls, drop queued ones and let running ones end, without waiting; for after `server.stop`."""
        self.reception.close()
        self.slow_readers.close()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
