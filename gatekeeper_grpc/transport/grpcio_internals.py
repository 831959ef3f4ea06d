"""The only module that uses private names of grpcio: it receives, sends and refuses without a worker that waits.

grpcio's own server waits for a message on a worker, without a limit, and its public API ends a call only from a worker.
pyproject.toml pins the minor version of grpcio. tests/rpc/transport/test_grpcio_internals.py lists every private name
that this module uses and looks it up in the installed grpcio and in a live call; if grpcio moves one, the test fails
with its name. The other tests of tests/rpc/transport notice if a name comes to mean something else.
"""
# ruff: noqa: SLF001 # That is what this module is for.

import importlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import grpc
import structlog

from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.transport.arrival import Arrival, stranger
from gatekeeper_grpc.transport.stream_life import StreamLife
from gatekeeper_grpc.transport.turns import Turns
from gatekeeper_grpc.wire.status import status_from_error

_server: Any = importlib.import_module("grpc._server")  # Not in grpcio's published types: Any in all of this module.
_cygrpc = _server.cygrpc
_CompletionQueue: Any = _cygrpc.CompletionQueue

Metadata = Sequence[tuple[str, str | bytes]]

# To collect costs microseconds, and the interpreter for a moment. A busy server notices a thousand of them a second.
_COLLECT_INTERVAL_S = 0.005
# Then one call is dealt with, however many come; sooner, while each that comes has another one refused.
_MAX_EVENTS_AT_ONCE, _MAX_REFUSED_AT_ONCE = 256, 16
_NOW = 0.0
# To look up a member of a class takes longer than what is done with it.
_STARTED, _TIMEOUT = _server._ServerStage.STARTED, _cygrpc.CompletionType.queue_timeout
_OK = _cygrpc.StatusCode.ok

_log = structlog.get_logger(__name__)


class Turn(NamedTuple):
    """What is known of a call when it has its turn."""

    client: str
    """Whom it comes from, as gRPC would name them: the peer, or whom a trusted proxy names."""
    arrived_at: float
    """In monotonic seconds."""
    waited_s: float = 0.0
    """How long it has waited for its turn, behind others of its address."""
    waiting: int = 0
    """How many calls waited for their turn when this one had it."""


_handed_over = threading.local()  # `turn` of the call that grpcio deals with, on a serving thread


class ArrivedCall:
    """A call that has arrived and has no worker yet. Its methods never block: they are for the serving thread.

    Args:
        event: With which the core has handed it over.
        state: What grpcio knows of it.
        behaviour: The method that it calls.
        serve: Serves it on a worker.
        turn: Its turn; None: that of the call that grpcio deals with on this thread.
    """

    __slots__ = (
        "_call",
        "_event",
        "_serve",
        "_state",
        "admit",
        "arrival",
        "arrived_at",
        "behaviour",
        "client",
        "is_brief",
        "metadata",
        "taken",
        "turn",
    )

    admit: Callable[["ArrivedCall"], None]
    """What takes the call when its message is here. Set by who holds the call."""
    taken: Callable[[], None] | None
    """Called once when a worker takes the call or nobody will, if it is set."""
    client: str
    """Whom the call comes from, as gRPC would name them: the peer, or whom a trusted proxy names."""
    is_brief: bool
    """Whether the end of the call is noticed only when its message comes, or its answer is sent."""

    def __init__(
        self, event: Any, state: Any, behaviour: Any, serve: Callable[[], object], turn: Turn | None = None
    ) -> None:
        self._serve = serve
        self._event = event
        self._call = event.call
        self._state = state
        self.is_brief = type(state) is _BriefState
        self.behaviour = behaviour
        self.metadata: Metadata = event.invocation_metadata
        self.turn: Turn = turn or getattr(_handed_over, "turn", None) or Turn(self.peer, time.monotonic())
        self.client = state.gatekeeper_client = self.turn.client
        self.arrived_at = self.turn.arrived_at
        self.arrival: Arrival
        self.taken = None
        state.gatekeeper_call = event.call  # `peers_being_served` reads it.

    @property
    def peer(self) -> str:
        """What gRPC calls the peer, such as "ipv4:192.0.2.7:5001"."""
        peer: str = self._call.peer().decode()
        return peer

    def peer_identities(self) -> list[bytes] | None:
        """Return the names in the client's certificate, as `grpc.ServicerContext.peer_identities` does."""
        identities: list[bytes] | None = _cygrpc.peer_identities(self._call)
        return identities

    @property
    def authority(self) -> str:
        """What the client calls the server, such as "flags.example.com:50051", in lower case."""
        host: bytes = self._event.call_details.host
        return host.decode("ascii", "replace").lower()

    @property
    def message(self) -> bytes | None:
        """The first message; None before it is here, and if the client sent none."""
        message: bytes | None = self._state.request
        return message

    def replace_message(self, message: bytes) -> None:
        """Have a worker find `message` instead of the first message, which no longer takes memory."""
        with self._state.condition:
            self._state.request = message
        self._let_go()

    def note(self, arrival: Arrival) -> None:
        """Keep what is known of the call, also for `arrival_of` on its worker."""
        self.arrival = self._state.gatekeeper_arrival = arrival
        self._state.gatekeeper_is_stream = self.behaviour.is_stream
        self._state.gatekeeper_arrived_at = self.arrived_at

    def end_soon(self, error: GatekeeperError) -> bool:
        """Have the worker of a running stream end it with `error`; False if it has been told before."""
        return _end_soon(self._state, error)

    def serve(self) -> None:
        """Serve the call, on a worker, unless it has been refused."""
        self._let_go()
        if not self._state.statused:
            self._serve()

    def make_waitable(self) -> None:
        """Have the end of the call noticed while it waits for anything but its message, such as a worker."""
        state = self._state
        with state.condition:
            if self.is_brief and not state.statused:
                self.is_brief = False
                state.become_lasting()
                self._call.start_server_batch(
                    (_cygrpc.ReceiveCloseOnServerOperation(0),), _server._receive_close_on_server(state)
                )
                state.due.add(_server._RECEIVE_CLOSE_ON_SERVER_TOKEN)

    def receive_then(self, proceed: Callable[[], None]) -> bool:
        """Start to receive the first message; return False if the call is over already.

        `proceed` runs on the serving thread, once the message or the end of the requests is here.
        """
        state = self._state
        with state.condition:
            # After the end of a call, grpcio's serving thread would die of a further event.
            if is_live := _is_live(state):
                received = _FirstMessage(self, state, proceed)
                self._call.start_server_batch((_cygrpc.ReceiveMessageOperation(0),), received)
                state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
            return is_live

    def when_over(self, callback: Callable[[], None]) -> bool:
        """Call `callback` on the serving thread when the call is over; return False if it is over already."""
        self.make_waitable()
        with self._state.condition:
            is_open = self._state.callbacks is not None
            if is_open:
                self._state.callbacks.append(callback)
            return is_open

    def is_live(self) -> bool:
        """Return whether the call can still have a response: it is neither cancelled nor ended."""
        return _is_live(self._state)

    def answer(self, response: bytes, metadata: Metadata) -> bool:
        """Send the one response of the call and end it with OK, in one passage through the core; False if it is over.

        Args:
            response: Serialised.
            metadata: All that follows the response.
        """
        state, token = self._state, _server._SEND_STATUS_FROM_SERVER_TOKEN
        with state.condition:
            if not _is_live(state):
                return False
            operations: tuple[Any, ...] = (
                _cygrpc.SendInitialMetadataOperation(None, 0),
                _cygrpc.SendMessageOperation(response, 0),
                _cygrpc.SendStatusFromServerOperation(metadata, _OK, b"", 0),
            )
            finish = _server._send_status_from_server(state, token)
            if self.is_brief:
                operations, finish = (*operations, _cygrpc.ReceiveCloseOnServerOperation(0)), _BriefEnd(state)
            self._call.start_server_batch(operations, finish)
            state.statused = True
            state.due.add(token)
        self._let_go()
        return True

    def refuse(self, status: grpc.Status) -> None:
        """End the call with `status`, unless it has ended already."""
        self.make_waitable()
        with self._state.condition:
            is_open = not self._state.statused
            if is_open:
                self._state.trailing_metadata = (
                    *(status.trailing_metadata or ()),
                    *self.behaviour.echoed(self.metadata),
                )
                _end(self._state, self._call, status)
        self._let_go()
        if is_open:
            self.behaviour.refused(self, status)

    def refuse_unless_received(self, status: grpc.Status) -> bool:
        """End the call with `status` if its first message has not arrived; return whether it has not."""
        with self._state.condition:
            is_missing = self.is_receiving()
            if is_missing:
                self.refuse(status)
            return is_missing

    def is_receiving(self) -> bool:
        """Return whether a message is being received."""
        return _server._RECEIVE_MESSAGE_TOKEN in self._state.due

    def cancel(self) -> None:
        """Reset the call. This frees its memory even if the client reads nothing, not even a refusal."""
        self._call.cancel()

    def _let_go(self) -> None:
        taken, self.taken = self.taken, None
        if taken is not None:
            taken()


class _BriefState(_server._RPCState):  # type: ignore[misc] # Any, as all of grpc._server.
    """grpcio's state of a call that may be answered where it arrives, for as long as it waits only for its message.

    grpcio has the core tell it of the end of each call, by an event of its own. Here the batch that sends the answer
    does so. No thread waits for such a call, so its condition is a lock, one for all of them.
    """

    request = code = details = trailing_metadata = compression_algorithm = None
    client = _server._OPEN
    initial_metadata_allowed = True
    disable_next_compression = statused = aborted = False
    callbacks = rpc_errors = ()

    def __init__(self, lock: Any) -> None:
        self.condition = lock
        self.due: set[str] = set()

    def become_lasting(self) -> None:
        """Have all of grpcio's state; with the condition held."""
        request, client, statused, due = self.request, self.client, self.statused, self.due
        super().__init__()
        self.request, self.client, self.statused, self.due = request, client, statused, due


class _FirstMessage:
    """What the event of the first message, or of the end of the requests, is for; called as grpcio's own callbacks."""

    __slots__ = ("call", "proceed", "state")

    def __init__(self, call: ArrivedCall, state: Any, proceed: Callable[[], None]) -> None:
        self.call = call
        self.state = state
        self.proceed = proceed

    def __call__(self, event: Any) -> Any:
        state = self.state
        with state.condition:
            state.request = _server._serialized_request(event)
            if state.request is None and state.client is _server._OPEN:
                state.client = _server._CLOSED
            finished = _server._possibly_finish_call(state, _server._RECEIVE_MESSAGE_TOKEN)
        self.proceed()
        return finished


class _BriefEnd:
    """What the event of an answer is for that ends a brief call; called as grpcio's own callbacks."""

    __slots__ = ("state",)

    def __init__(self, state: Any) -> None:
        self.state = state

    def __call__(self, _event: Any) -> Any:
        return self.state, ()


class RequestReader(Iterator[bytes]):
    """A call's request messages as bytes. The first may have been received before a worker took the call.

    A stream is received one message ahead: otherwise each message would wait for a round trip to the client, because
    the window for it opens only when it is asked for.
    """

    __slots__ = ("_is_saturated", "_life", "_requests", "_state", "_takes_stream")

    def __init__(
        self, requests: Any, life: StreamLife, is_saturated: Callable[[], bool], *, takes_stream: bool
    ) -> None:
        self._takes_stream = takes_stream
        self._requests = requests
        self._state = requests._state
        self._life = life
        self._is_saturated = is_saturated

    def __next__(self) -> bytes:
        """Return the next message; wait for it while the call may be open.

        Raises:
            StopIteration: The client has sent its last message.
            GatekeeperError: The call must end, as `StreamLife` says.
            grpc.RpcError: The client has cancelled the call.
        """
        self._life.check()
        with self._state.condition:
            if not self._is_receiving():
                self._requests._raise_or_start_receive_message()
            message = self._await_message()
            if self._takes_stream and _is_live(self._state):
                self._requests._raise_or_start_receive_message()
            return message

    def _is_receiving(self) -> bool:
        return self._state.request is not None or _server._RECEIVE_MESSAGE_TOKEN in self._state.due

    def _await_message(self) -> bytes:
        started = time.monotonic()
        check_not_ending(self._state)
        while (message := self._requests._look_for_request()) is None:
            self._life.check_wait(time.monotonic() - started, is_saturated=self._is_saturated)
            self._state.condition.wait(self._life.pause_s())
            check_not_ending(self._state)
        self._life.waited(time.monotonic() - started)
        return bytes(message)


class GrpcResponseStream:
    """The response stream of a call: sends, and ends the call, without a thread that waits for the client.

    grpcio's own `send_response` keeps its thread until the client has room for the response. Any thread may use this
    one; at most one message may be in transit. Implements `cache.watcher_hub.ResponseStream`.
    """

    __slots__ = ("_call", "_state")

    def __init__(self, context: Any) -> None:
        self._call = context._rpc_event.call
        self._state = context._state

    def send(self, message: bytes, sent: Callable[[], None]) -> bool:
        """Start to send a serialised message.

        `sent` runs on the serving thread when there is room for another message, or when the call is over; it must take
        constant time. False: the call is over already, and `sent` does not run.
        """
        with self._state.condition:
            if not _is_live(self._state):
                return False
            operations = (*self._initial_metadata(), _cygrpc.SendMessageOperation(message, 0))
            self._call.start_server_batch(operations, self._when_sent(sent))
            self._state.due.add(_server._SEND_MESSAGE_TOKEN)
        return True

    def _initial_metadata(self) -> tuple[Any, ...]:
        if not self._state.initial_metadata_allowed:
            return ()
        self._state.initial_metadata_allowed = False
        return (_server._get_initial_metadata_operation(self._state, None),)

    def _when_sent(self, sent: Callable[[], None]) -> Callable[[Any], Any]:
        finish = _server._send_message(self._state, _server._SEND_MESSAGE_TOKEN)

        def finished(event: Any) -> Any:
            outcome = finish(event)
            sent()
            return outcome

        return finished

    def end(self, error: Exception) -> None:
        """End the call with the status of `error`, unless it is over. A message in transit is still delivered."""
        status = status_from_error(error, "")
        with self._state.condition:
            if _is_live(self._state):
                self._state.trailing_metadata = (*(self._state.trailing_metadata or ()), *status.trailing_metadata)
                _end(self._state, self._call, status)

    def cancel(self) -> None:
        """Cancel the call. Only this reaches a client that does not read."""
        self._call.cancel()


@dataclass(frozen=True, slots=True)
class SurplusCall:
    """A call that is refused before grpcio deals with it, because too many wait for their turn."""

    method: str
    """As the client names it, such as "/gatekeeper.v1.EvaluationService/EvaluateFlags"; there may be none."""
    client: str
    """As that of an `ArrivedCall`."""
    metadata: Metadata
    arrived_at: float


class _NewCall(NamedTuple):
    arrived_at: float
    client: str
    event: Any
    """With which the core hands it over."""


class CallsInTurn:
    """Hands over the new calls of a server in turn of those who call, not in the order in which they came.

    The core of grpcio keeps new calls and hands over one of each kind at a time: the next when grpcio has dealt with
    that one. A call would wait for all that came before it. So this takes every call from the core as soon as it is
    there, which is far cheaper than to deal with it, and lets grpcio deal with one of each owner in turn. What happens
    to calls that grpcio has dealt with already comes first. If too many wait, it refuses a call of the owner with the
    most. Runs on the serving thread.

    Calls of methods that may answer at once it begins itself, without grpcio: docs/decisions/0060-brief-calls.md.

    Args:
        server: Not started yet.
        client_of: Whom a call comes from, by what gRPC calls its peer and by its metadata.
        refuse: Told of each call that is refused; returns the status for it and all its trailing metadata.
        max_waiting: How many calls wait.
    """

    def __init__(
        self,
        server: grpc.Server,
        client_of: Callable[[str, Metadata], str],
        refuse: Callable[[SurplusCall], tuple[grpc.Status, Metadata]],
        *,
        max_waiting: int,
    ) -> None:
        server_state: Any = server._state  # type: ignore[attr-defined]
        self._server_state = server_state
        self._client_of = client_of
        self._refuse = refuse
        self._queue = _EventQueue()
        self._queue.calls = self
        self._calls: Turns[_NewCall] = Turns(max_waiting)
        self._calls_of: Counter[Any] = Counter()  # how many wait, by the tag with which the core was asked
        self._events: deque[Any] = deque()  # of calls that grpcio has dealt with
        self._lock_of_brief = threading.RLock()
        self._behaviours: dict[Any, Any] = {}  # by method; None: it never answers at once
        self._collected_at = 0.0
        server_state.server.register_completion_queue(self._queue)
        server_state.completion_queue = self._queue
        server_state.due = _Due()

    def next_event(self, deadline: float | None) -> Any:
        """Return what grpcio deals with next; if there is nothing, wait for it until `deadline`."""
        while True:
            if not (self._events or self._calls):
                self._sort(self._queue.poll_core(deadline))
            if time.monotonic() - self._collected_at >= _COLLECT_INTERVAL_S:
                self._collect()
            if self._events:
                event = self._events.popleft()
                if not self._go_on(event):
                    return event
            elif self._calls:  # What came may have been refused.
                event, turn = self._take_call()
                if not self._begin(event, turn):
                    _handed_over.turn = turn
                    return event
                self._poll_for_event()

    def _begin(self, event: Any, turn: Turn) -> bool:
        """Deal with a call that may be answered where it arrives; False: grpcio does."""
        behaviour = self._behaviour_of(event)
        if behaviour is None:
            return False
        state, server_state = _BriefState(self._lock_of_brief), self._server_state
        with server_state.lock:
            if server_state.stage is not _STARTED:
                return False
            server_state.due.remove(event.tag)
            server_state.rpc_states.add(state)
        call = ArrivedCall(event, state, behaviour, partial(_serve_on_worker, event, state, behaviour), turn)
        behaviour.experimental_thread_pool.take(call)
        return True

    def _go_on(self, event: Any) -> bool:
        """Go on with a brief call; False: grpcio deals with the event."""
        tag, server_state = event.tag, self._server_state
        if type(tag) is _FirstMessage and tag.call.is_brief:
            tag(event)
            return True
        if type(tag) is _BriefEnd:
            with server_state.lock:
                if server_state.stage is _STARTED:  # Otherwise, it may have been the last call.
                    server_state.rpc_states.remove(tag.state)
                    return True
        return False

    def _behaviour_of(self, event: Any) -> Any:
        """Return the method of a call, if it is one that answers at once."""
        name = event.tag if event.tag is not _server._REQUEST_CALL_TAG else event.call_details.method
        if name in self._behaviours:
            return self._behaviours[name]
        if (handler := self._handler_of(event)) is None:
            return None  # Strangers name what they like: that is not kept.
        behaviour = handler.stream_unary
        self._behaviours[name] = behaviour if getattr(behaviour, "answers_at_once", False) else None
        return self._behaviours[name]

    def _handler_of(self, event: Any) -> Any:
        """Return what serves a call, with all that the interceptor adds; None: no such method."""
        details, server_state = _server._HandlerCallDetails(_method_of(event), ()), self._server_state
        services = (each.service(details) for each in server_state.generic_handlers)
        handler = server_state.registered_method_handlers.get(event.tag) or next(filter(None, services), None)
        pipeline = server_state.interceptor_pipeline
        if handler is None or pipeline is None:
            return handler
        return pipeline.execute(lambda _details: handler, details)

    def _poll_for_event(self) -> None:
        """Take new calls up to an event of a call that is dealt with, such as the message of the last one."""
        for _ in range(_MAX_EVENTS_AT_ONCE):
            if self._events or self._calls.is_full or not self._calls:
                return
            event = self._queue.poll_core(_NOW)
            if event.completion_type == _TIMEOUT:
                return
            self._sort(event)

    def _collect(self) -> None:
        """Take what the core has, without waiting; if that is much, take the rest next time."""
        for _ in range(_MAX_REFUSED_AT_ONCE if self._calls.is_full else _MAX_EVENTS_AT_ONCE):
            event = self._queue.poll_core(_NOW)
            if event.completion_type == _TIMEOUT:
                self._collected_at = time.monotonic()
                return
            self._sort(event)

    def _sort(self, event: Any) -> None:
        # Without success it is no call: the server ends.
        if isinstance(event, _cygrpc.RequestCallEvent) and event.success:
            client, owner = self._client_and_owner(event)
            surplus = self._calls.add(owner, _NewCall(time.monotonic(), client, event))
            self._calls_of[event.tag] += 1
            if surplus is not None:
                self._end(surplus)
            self._ask_for_another(event.tag)
        else:
            self._events.append(event)

    def _client_and_owner(self, event: Any) -> tuple[str, Hashable]:
        peer = event.call.peer().decode()
        try:
            client = self._client_of(peer, event.invocation_metadata)
            return client, stranger(client).owner
        except Exception:  # noqa: BLE001 - it would end the serving thread, and so the server
            _log.exception("owner_unknown", peer=peer)
            return peer, None

    def _end(self, surplus: _NewCall) -> None:
        """Refuse a call that grpcio has not dealt with, in one passage through the core: more of them are to come."""
        event, refused = surplus.event, object()
        status, metadata = self._refuse(
            SurplusCall(_method_of(event), surplus.client, event.invocation_metadata, surplus.arrived_at)
        )
        self._calls_of[event.tag] -= 1
        with self._server_state.lock:
            self._server_state.due.remove(event.tag)
            self._server_state.rpc_states.add(refused)
        operations = (
            _cygrpc.SendInitialMetadataOperation((), 0),
            _cygrpc.ReceiveCloseOnServerOperation(0),
            _cygrpc.SendStatusFromServerOperation(metadata, status.code.value[0], status.details.encode(), 0),
        )
        event.call.start_server_batch(operations, lambda _event: (refused, ()))

    def _take_call(self) -> tuple[Any, Turn]:
        arrived_at, client, event = self._calls.take()
        self._calls_of[event.tag] -= 1
        return event, Turn(client, arrived_at, time.monotonic() - arrived_at, len(self._calls))

    def _ask_for_another(self, tag: Any) -> None:
        """Ask the core for one more call of a kind, unless it was asked. grpcio itself asks only later."""
        server_state = self._server_state
        with server_state.lock:
            is_asked = server_state.due.count(tag) > self._calls_of[tag]
            is_ending = server_state.stage is not _STARTED
            if is_asked or is_ending:
                return
            if tag is _server._REQUEST_CALL_TAG:
                _server._request_call(server_state)
            else:
                _server._request_registered_call(server_state, tag)


def _serve_on_worker(event: Any, state: Any, behaviour: Any) -> None:
    """Do what grpcio has its pool do for a method with a stream of requests and one response."""
    requests = _server._RequestIterator(state, event.call, None)
    state.context.run(_server._unary_response_in_pool, event, state, behaviour, lambda: requests, None, None)


def _method_of(event: Any) -> str:
    """Return the method that a new call names. Anybody may send bytes that are no text."""
    method = event.tag
    if method is _server._REQUEST_CALL_TAG:
        method = event.call_details.method.decode(errors="replace")
    return str(method)


class _EventQueue(_CompletionQueue):  # type: ignore[misc] # Any, as all of cygrpc.
    """grpcio's queue of events, which its serving thread polls."""

    calls: CallsInTurn

    def poll(self, deadline: float | None = None) -> Any:
        """See `CallsInTurn.next_event`."""
        return self.calls.next_event(deadline)

    def poll_core(self, deadline: float | None) -> Any:
        """Return the next event in the order of the core, of type `queue_timeout` if there is none by `deadline`."""
        return super().poll(deadline)


class _Due:
    """What has to come before a server may end, by tag. grpcio's own set cannot tell one call of a kind from two."""

    def __init__(self) -> None:
        self._counts: Counter[Any] = Counter()

    def __bool__(self) -> bool:
        return any(self._counts.values())

    def add(self, tag: Any) -> None:
        self._counts[tag] += 1

    def remove(self, tag: Any) -> None:
        self._counts[tag] -= 1

    def count(self, tag: Any) -> int:
        return self._counts[tag]


def peers_being_served(server: grpc.Server, *, excluding: Collection[ArrivedCall]) -> set[str]:
    """Return grpcio's names of the clients that have a call in progress, not counting the calls in `excluding`.

    A call is in progress until the kernel has its last byte.
    """
    server_state: Any = server._state  # type: ignore[attr-defined]
    with server_state.lock:
        in_progress = server_state.rpc_states - {arrived._state for arrived in excluding}
    calls = [state.gatekeeper_call for state in in_progress if hasattr(state, "gatekeeper_call")]
    return {call.peer().decode() for call in calls}


def end_streams(server: grpc.Server, error: GatekeeperError) -> None:
    """Have the workers of all streams of a server end them with `error`, each before its next message."""
    server_state: Any = server._state  # type: ignore[attr-defined]
    with server_state.lock:
        in_progress = [*server_state.rpc_states]
    for state in in_progress:
        if getattr(state, "gatekeeper_is_stream", False):
            _end_soon(state, error)


def arrival_of(context: Any) -> Arrival:
    """Return what was known of a call when it arrived."""
    arrival: Arrival = context._state.gatekeeper_arrival
    return arrival


def check_stream(context: Any) -> None:
    """Raise what `end_streams` or `ArrivedCall.end_soon` was told about a call."""
    check_not_ending(context._state)


def client_of(context: Any) -> str:
    """Return whom a call comes from, as `ArrivedCall.client`."""
    client: str = context._state.gatekeeper_client
    return client


def check_not_ending(state: Any) -> None:
    """As `check_stream`, for the state of a call."""
    error = getattr(state, "gatekeeper_ending", None)
    if error is not None:
        raise error


def arrived_at(context: Any) -> float:
    """Return when a call arrived, in monotonic seconds; it may have waited for a worker since."""
    at: float = context._state.gatekeeper_arrived_at
    return at


def is_aborted(context: Any) -> bool:
    """Return whether `context.abort` was called; the bare `Exception` that it raised must propagate."""
    return bool(context._state.aborted)


def is_cancelled(context: Any) -> bool:
    """Return whether the client has cancelled, reached its deadline, or disconnected."""
    return context._state.client is _server._CANCELLED


def _end_soon(state: Any, error: GatekeeperError) -> bool:
    with state.condition:
        if hasattr(state, "gatekeeper_ending"):
            return False
        state.gatekeeper_ending = error
        state.condition.notify_all()
        return True


def _is_live(state: Any) -> bool:
    return bool(_server._is_rpc_state_active(state))


def _end(state: Any, call: Any, status: grpc.Status) -> None:
    state.code = status.code
    state.details = status.details.encode()
    # Sends what the state holds; the arguments are for a state without a code.
    _server._abort(state, call, _cygrpc.StatusCode.unknown, b"")
