"""Holds calls until their first message is here: a pending call costs bounded memory, and no thread.

Anybody may open such a call and send nothing, or announce a large message and send a part of it. grpcio gives each of
them a worker, which waits: four such calls stop a server with four workers. And a message that is being received may
take all of its bytes, so only a few are received at once (`receive_slots`); of the others, a client can send no more
than `LOOKAHEAD_BYTES`.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import grpc

from gatekeeper_grpc.domain.errors import InvalidArgument, ResourceExhausted
from gatekeeper_grpc.transport.arrival import ADDRESS, Owner
from gatekeeper_grpc.transport.deadlines import DeadlineGroup, Deadlines
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.transport.listener import LOOKAHEAD_BYTES, MAX_RECEIVED_BYTES
from gatekeeper_grpc.transport.receive_slots import SHORTEST_S, ReceiveSlots
from gatekeeper_grpc.wire.status import RequestTimeout, status_from_error

_RETRY_AFTER_S = 1.0
# How long a client may take to read why its call has ended. Then the call is reset, which frees its memory.
_END_WITHIN_S = 1.0
# Smaller messages are not counted: a thousand of them are a megabyte.
_COUNTED_BYTES = 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingLimits:
    """How much the calls of a server may hold that have no worker yet."""

    calls: int = 500
    """Calls whose message is not received yet. One owner has half of them at most; one more ends the oldest."""
    receiving: int = 4
    """Messages that are received at once."""
    queued_bytes: int = 8 << 20
    """Messages that are here and wait for a worker. Beyond it, they keep their place among those being received."""
    max_message_bytes: int = MAX_RECEIVED_BYTES
    """The largest message that the server receives."""

    @property
    def max_bytes(self) -> int:
        """What all of it may hold together."""
        return self.calls * LOOKAHEAD_BYTES + self.receiving * self.max_message_bytes + self.queued_bytes


class PendingCalls:
    """The calls without a message. Ends those whose message does not come in time.

    Args:
        deadlines: Those of the server.
        limits: How much they may hold.
    """

    def __init__(self, deadlines: Deadlines, limits: PendingLimits) -> None:
        self.limits = limits
        self.refused = 0
        """Calls refused because others waited, or because too many did."""
        self._lock = threading.Lock()  # guards `refused` and the three that follow
        self._slots: ReceiveSlots[ArrivedCall] = ReceiveSlots(
            limits.receiving, max_waiting=limits.calls, clock=deadlines.clock
        )
        self._queued_bytes = 0
        self._calls = deadlines.group("pending_calls", self._time_out)
        self._making_way: DeadlineGroup[None] = deadlines.group(
            "messages_making_way", lambda _: self._make_way(), is_logged=False
        )
        self._refused_unread = deadlines.group("unread_refusals", ArrivedCall.cancel)
        self._timeout = status_from_error(RequestTimeout("no request message arrived in time"), "")
        self._slow = _refusal("the message did not arrive while others waited; retry later")
        self._full = _refusal("too many calls wait for their message; retry later")

    def __len__(self) -> int:
        """Count the pending calls."""
        return len(self._calls)

    @property
    def held_bytes(self) -> int:
        """What the calls may hold at this moment."""
        slots, limits = self._slots, self.limits
        return slots.waiting * LOOKAHEAD_BYTES + slots.receiving * limits.max_message_bytes + self._queued_bytes

    def hold(self, call: ArrivedCall, *, within_s: float, admit: Callable[[ArrivedCall], None]) -> None:
        """Keep `call` until its first message is here, then `admit` it; end it if that takes longer than `within_s`.

        A message that is longer than `max_request_bytes` of the call's behaviour ends the call. Runs on the serving
        thread, and so does `admit`: both must take constant time.
        """
        call.admit = admit
        owner = call.arrival.owner
        with self._lock:
            starts = self._slots.request(call, owner)
            surplus = None if starts else self._slots.remove_surplus(owner)
        self._calls.add(call, within_s=within_s)
        if starts:
            self._start(call)
        else:
            self._wait(call)
        if surplus is not None:
            self._calls.remove(surplus)
            self._refuse(surplus, self._full)

    def _start(self, call: ArrivedCall) -> None:
        if not call.receive_then(partial(self._received, call)):
            self._calls.remove(call)
            self._release(call, is_received=False)

    def _wait(self, call: ArrivedCall) -> None:
        """Watch a call that waits: it may end, and others may have to make way for it."""
        if not call.is_brief and not call.when_over(partial(self._forget, call)):
            self._forget(call)
        if not self._making_way:  # It runs again as long as calls wait.
            self._making_way.add(None, within_s=SHORTEST_S)

    def _forget(self, call: ArrivedCall) -> None:
        with self._lock:
            was_waiting = self._slots.remove(call)
        if was_waiting:
            self._calls.remove(call)

    def _received(self, call: ArrivedCall) -> None:
        """Admit `call`, whose message or end of requests is here."""
        self._calls.remove(call)
        if not call.is_live():
            self._refused_unread.remove(call)
            self._release(call, is_received=False)
            return
        size = len(call.message or b"")
        if size > (limit := getattr(call.behaviour, "max_request_bytes", size)):
            self._release(call, is_received=True)
            call.refuse(status_from_error(too_long(size, limit), ""))
            return
        if size > _COUNTED_BYTES:
            self._count(call, size)
        else:
            self._release(call, is_received=True)
        call.admit(call)

    def _count(self, call: ArrivedCall, size: int) -> None:
        """Count a message until a worker takes it: as queued, or, if too much is, as one still being received."""
        with self._lock:
            is_queued = self._queued_bytes + size <= self.limits.queued_bytes
            if is_queued:
                self._queued_bytes += size
        if is_queued:
            call.taken = partial(self._dequeue, size)
            self._release(call, is_received=True)
        else:
            call.taken = partial(self._release, call, is_received=True)

    def _dequeue(self, size: int) -> None:
        with self._lock:
            self._queued_bytes -= size

    def _release(self, call: ArrivedCall, *, is_received: bool) -> None:
        """Free the slot of `call`, and start to receive what has its turn now."""
        with self._lock:
            self._slots.release(call, is_received=is_received)
            following = self._slots.start_next() if self._slots.waiting else None
        if following is not None:
            self._start(following)

    def _make_way(self) -> None:
        """End what has been received for too long while others wait; runs again as long as they do."""
        with self._lock:
            overdue, waiting = self._slots.overdue(), self._slots.waiting
        for call in overdue:
            self._refuse(call, self._slow)
        if waiting:
            self._making_way.add(None, within_s=SHORTEST_S)

    def _time_out(self, call: ArrivedCall) -> None:
        with self._lock:
            was_waiting = self._slots.remove(call)
        if was_waiting:
            self._refuse(call, self._full)
        elif call.refuse_unless_received(self._timeout):
            self._refused_unread.add(call, within_s=_END_WITHIN_S)

    def _refuse(self, call: ArrivedCall, status: grpc.Status) -> None:
        with self._lock:
            self.refused += 1
        self._calls.remove(call)
        call.refuse(status)
        if call.is_receiving():
            self._refused_unread.add(call, within_s=_END_WITHIN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingByTrust:
    """The pending calls of those without credentials, and of the others: neither takes what the other may hold."""

    strangers: PendingCalls
    known: PendingCalls

    def of(self, owner: Owner) -> PendingCalls:
        """Return those to which a call of `owner` belongs."""
        return self.strangers if owner.kind == ADDRESS else self.known


def too_long(size: int, max_bytes: int) -> InvalidArgument:
    """Make the error for a message of `size` bytes where `max_bytes` are allowed."""
    return InvalidArgument.of("request", f"must be at most {max_bytes} bytes long, not {size}")


def _refusal(text: str) -> grpc.Status:
    # Made once: a flood wins if refusing a call costs more than serving it.
    return status_from_error(ResourceExhausted(text, retry_after_s=_RETRY_AFTER_S), "")
