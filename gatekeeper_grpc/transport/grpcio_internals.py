"""All that we use of grpcio 1.85 and it does not publish: receiving, sending and refusing without a worker that waits.

grpcio's own server waits for a message on a worker, for ever, and its public API ends a call only from a worker. No
other module touches its private names; pyproject.toml pins the minor version, and tests/rpc/test_plumbing_*.py notice
a change.
"""
# ruff: noqa: SLF001 # That is what this module is for.

import importlib
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Self

import grpc

from gatekeeper_grpc.wire.status import RequestTimeout, status_from_error

_server: Any = importlib.import_module("grpc._server")  # Not in grpcio's published types: Any in all of this module.
_cygrpc = _server.cygrpc


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTimeout:
    """How long a worker may wait for a client's next message."""

    limit_s: float
    """At most this long."""
    limit_when_saturated_s: float
    """No longer than this while other calls queue for the worker."""


class ArrivedCall:
    """A call that has arrived and has no worker yet. Its methods never block: they are for the serving thread."""

    __slots__ = ("_call", "_state", "behaviour")

    def __init__(self, event: Any, state: Any, behaviour: Any) -> None:
        self._call = event.call
        self._state = state
        self.behaviour = behaviour

    @classmethod
    def from_submission(cls, args: tuple[Any, ...]) -> Self:
        """Recognise the call in what grpcio passes to `pool.submit` after the function."""
        _serve, event, state, behaviour, *_ = args
        state.gatekeeper_call = event.call  # Looked for by `peers_being_served`.
        return cls(event, state, behaviour)

    def receive_then(self, proceed: Callable[[], None]) -> None:
        """Start to receive the first message.

        `proceed` runs on the serving thread, once the message or the end of the requests is here.
        """
        receive = _server._receive_message(self._state, self._call, None)

        def received(event: Any) -> Any:
            finished = receive(event)
            proceed()
            return finished

        with self._state.condition:
            self._call.start_server_batch((_cygrpc.ReceiveMessageOperation(0),), received)
            self._state.due.add(_server._RECEIVE_MESSAGE_TOKEN)

    def is_live(self) -> bool:
        """Tell whether the call can still be answered: nobody has cancelled or ended it."""
        with self._state.condition:
            live: bool = _server._is_rpc_state_active(self._state)
            return live

    def refuse(self, status: grpc.Status) -> None:
        """End the call with `status`, unless it has ended already or its message has come after all."""
        with self._state.condition:
            if self._state.statused:
                return
            self._state.code = status.code
            self._state.details = status.details.encode()
            self._state.trailing_metadata = status.trailing_metadata
            # Sends what the state holds; the arguments are for a state without a code.
            _server._abort(self._state, self._call, _cygrpc.StatusCode.unknown, b"")

    def refuse_unless_received(self, status: grpc.Status) -> None:
        """End the call with `status` if its first message is still on the way."""
        with self._state.condition:
            if _server._RECEIVE_MESSAGE_TOKEN in self._state.due:
                self.refuse(status)


class RequestReader(Iterator[bytes]):
    """A call's request messages as bytes. Its first may have been received before a worker took the call."""

    __slots__ = ("_others_wait", "_patience", "_requests", "_state")

    def __init__(self, requests: Any, patience: MessageTimeout, others_wait: Callable[[], bool]) -> None:
        self._requests = requests
        self._state = requests._state
        self._patience = patience
        self._others_wait = others_wait

    def __next__(self) -> bytes:
        """Return the next message, waiting as long as patience lasts.

        Raises:
            StopIteration: The client has sent its last message.
            RequestTimeout: No message came in time.
            grpc.RpcError: The client has cancelled the call.
        """
        with self._state.condition:
            if not self._is_receiving():
                self._requests._raise_or_start_receive_message()
            return self._await_message()

    def _is_receiving(self) -> bool:
        return self._state.request is not None or _server._RECEIVE_MESSAGE_TOKEN in self._state.due

    def _await_message(self) -> bytes:
        started = time.monotonic()
        pause_s = min(self._patience.limit_s, self._patience.limit_when_saturated_s)
        while (message := self._requests._look_for_request()) is None:
            self._check_patience(time.monotonic() - started)
            self._state.condition.wait(pause_s)
        return bytes(message)

    def _check_patience(self, waited_s: float) -> None:
        pressed = waited_s >= self._patience.limit_when_saturated_s and self._others_wait()
        if pressed or waited_s >= self._patience.limit_s:
            raise RequestTimeout(f"no request message arrived within {waited_s:.1f} s")


class ResponseStream:
    """The response stream of a call: sends, and ends the call, without a thread that waits for the client.

    grpcio's own way keeps a thread until the client has made room for a response. Safe to use from any thread; at most
    one message may be on the way.
    """

    __slots__ = ("_call", "_state")

    def __init__(self, context: Any) -> None:
        self._call = context._rpc_event.call
        self._state = context._state

    def send(self, message: bytes, sent: Callable[[], None]) -> bool:
        """Start to send a serialised message.

        `sent` runs on the serving thread when the message is on its way and there is room for another one, or when the
        call is over; it must take constant time. False, and `sent` does not run: the call is over already.
        """
        with self._state.condition:
            if not _server._is_rpc_state_active(self._state):
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
        """End the call with the status of `error`, unless it is over. A message on the way is still delivered."""
        status = status_from_error(error, "")
        with self._state.condition:
            if not _server._is_rpc_state_active(self._state):
                return
            self._state.code = status.code
            self._state.details = status.details.encode()
            self._state.trailing_metadata = (*(self._state.trailing_metadata or ()), *status.trailing_metadata)
            _server._abort(self._state, self._call, _cygrpc.StatusCode.unknown, b"")

    def cancel(self) -> None:
        """Cancel the call: the only end that a client sees that does not read."""
        self._call.cancel()


def peers_being_served(server: grpc.Server, *, besides: Collection[ArrivedCall]) -> set[str]:
    """Name the clients that have a call in progress whose responses may be under way, not counting those `besides`.

    A call is over when the kernel has its last byte.
    """
    state: Any = server._state  # type: ignore[attr-defined]
    with state.lock:
        in_progress = state.rpc_states - {call._state for call in besides}
    calls = [rpc_state.gatekeeper_call for rpc_state in in_progress if hasattr(rpc_state, "gatekeeper_call")]
    return {call.peer().decode() for call in calls}


def is_aborted(context: Any) -> bool:
    """Tell whether `context.abort` has been called; the bare `Exception` it raises must travel on."""
    return bool(context._state.aborted)


def is_cancelled(context: Any) -> bool:
    """Tell whether the client has gone: cancelled, out of time, or disconnected."""
    return context._state.client is _server._CANCELLED
