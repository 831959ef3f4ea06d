"""The call that the current thread serves: its id, from where, how long its caller waits, and whether anybody does."""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Call(Protocol):
    """What `grpc.ServicerContext` says about a call."""

    def time_remaining(self) -> float | None:
        """Return how many seconds the caller still waits; None or infinity: as long as it takes."""
        ...

    def is_active(self) -> bool:
        """Return whether the call can still have an answer: not cancelled, not past its deadline."""
        ...

    def peer(self) -> str:
        """Return the address of the client as gRPC names it."""
        ...


def _no_call() -> None:
    return None


# A weak reference: the call itself owns the context that this variable is in. A cycle would keep every finished call,
# and its HTTP/2 stream, until the garbage collector runs.
_current: ContextVar[Callable[[], Call | None]] = ContextVar("gatekeeper_call", default=_no_call)


_call_id: ContextVar[str] = ContextVar("gatekeeper_call_id", default="")
_trace_id: ContextVar[str] = ContextVar("gatekeeper_trace_id", default="")
_arrived_at: ContextVar[float] = ContextVar("gatekeeper_call_arrived_at")
_client: ContextVar[str] = ContextVar("gatekeeper_call_client", default="")


def set_current_call(call: Call, *, call_id: str, arrived_at: float, client: str = "", trace_id: str = "") -> None:
    """Make `call` the current one. grpcio serves each call in a context of its own, so nothing needs undoing."""
    _current.set(weakref.ref(call))
    _call_id.set(call_id)
    if trace_id:
        _trace_id.set(trace_id)
    if client:
        _client.set(client)
    _arrived_at.set(arrived_at)


def current_call_id() -> str:
    """Return the server's id of the current call, also after its end; empty without a call."""
    return _call_id.get()


def current_trace_id() -> str:
    """Return the id of the trace that the current call belongs to; empty if its client has named none."""
    return _trace_id.get()


def call_arrived_at() -> float:
    """Return when the current call arrived, in monotonic seconds; it may have waited for a worker since."""
    return _arrived_at.get()


def time_left_s() -> float:
    """Return for how many seconds the caller of the current call still waits; infinity without a call or a deadline."""
    call = _current.get()()
    left_s = call.time_remaining() if call else None
    return math.inf if left_s is None else left_s


def is_abandoned() -> bool:
    """Return whether nobody waits for the current call any more; False without a call."""
    call = _current.get()()
    return call is not None and not call.is_active()


def current_peer() -> str:
    """Return whom the current call comes from, as gRPC names them; empty without a call.

    That is the peer, or whom a trusted proxy names.
    """
    call = _current.get()()
    return _client.get() or (call.peer() if call else "")


@contextmanager
def detached() -> Iterator[None]:
    """Work without a current call inside the block: what must be done although the caller may be gone."""
    token = _current.set(_no_call)
    try:
        yield
    finally:
        _current.reset(token)
