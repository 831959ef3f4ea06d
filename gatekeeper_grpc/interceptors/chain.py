"""Puts the stages of every call together, and gives the reason for their order."""

import contextvars
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from gatekeeper_grpc.domain.caller import set_current_caller
from gatekeeper_grpc.interceptors.authentication import SignatureGate, SignedCall, TokenVerifier, authenticate
from gatekeeper_grpc.interceptors.body import MessageParser, checked, messages, only_message
from gatekeeper_grpc.interceptors.errors import errors_as_status
from gatekeeper_grpc.interceptors.policy import DENIED, POLICIES, Access, Policy, authorize
from gatekeeper_grpc.interceptors.request_scope import Rpc, log_finished, open_rpc, request_scope
from gatekeeper_grpc.transport.admission import CallPool, CallPools
from gatekeeper_grpc.transport.grpcio_internals import MessageTimeout, RequestReader, ResponseStream

# On a busy machine, grpcio itself may take 100 ms to hand over a message that is here: pressed callers get a second.
MESSAGE_TIMEOUT = MessageTimeout(limit_s=5.0, limit_when_saturated_s=1.0)
STREAM_TIMEOUT = MessageTimeout(limit_s=60.0, limit_when_saturated_s=5.0)

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]  # Messages of any method.
else:
    _Handler = grpc.RpcMethodHandler  # Generic in its published types only.


def build_interceptors(
    *,
    verifier: TokenVerifier,
    pools: CallPools,
    policies: Mapping[str, Policy] = POLICIES,
    signatures: SignatureGate | None = None,
    message_timeout: MessageTimeout = MESSAGE_TIMEOUT,
    stream_timeout: MessageTimeout = STREAM_TIMEOUT,
) -> tuple[grpc.ServerInterceptor, ...]:
    """Build what stands between grpcio and every servicer, outermost stage first.

    1. **Request scope**: all that follows is logged under the call's id, and it sees the status that the client gets.
    2. **Errors**: outside all that may fail, or a refusal would reach the client as UNKNOWN with the exception's text.
    3. **Authentication**: from metadata alone, so that a denial waits for no message and nobody unknown makes us buffer
       or parse one. The body of a signed call is compared with its signature when it is there, before it is parsed.
    4. **Policy**: needs the caller; still before the message.
    5. **Body**: received and parsed last, on the worker, within the method's patience.

    The stages are one interceptor: grpcio would call each of several on its serving thread, to wrap the handler anew
    for every call. Here a method's stages are put together once, and a call costs that thread a dict lookup.

    Args:
        verifier: Tells whom an access token was issued to.
        pools: The workers; close them after the server.
        policies: One row per method, keyed by full name ("/package.Service/Method"). A method without a row is denied.
        signatures: Verifies calls of signable methods; None: nobody needs to sign, and signatures are not looked at.
        message_timeout: How long the message of a unary request may take.
        stream_timeout: How long a request stream may be silent, and a client leave a response unread.
    """
    plumbing = _Plumbing(
        verifier=verifier,
        pools=pools,
        policies=policies,
        signatures=signatures,
        message_timeout=message_timeout,
        stream_timeout=stream_timeout,
    )
    return (_Interceptor(plumbing),)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plumbing:
    """What the methods of a server share."""

    verifier: TokenVerifier
    pools: CallPools
    policies: Mapping[str, Policy]
    signatures: SignatureGate | None
    message_timeout: MessageTimeout
    stream_timeout: MessageTimeout


class _Interceptor(grpc.ServerInterceptor):
    """Tells grpcio who serves a call. Runs on the one serving thread: takes constant time and does no work."""

    def __init__(self, plumbing: _Plumbing) -> None:
        self._plumbing = plumbing
        self._served: dict[str, tuple[_Handler, _Handler]] = {}  # method -> (servicer's handler, ours around it)

    def intercept_service(
        self, continuation: Callable[[Any], _Handler | None], handler_call_details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        """Return the handler with its stages; None for a method nobody serves, which thus stays UNIMPLEMENTED."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        known, served = self._served.get(handler_call_details.method, (None, None))
        if known is handler:
            return served
        return self._serve(handler_call_details.method, handler)

    def _serve(self, name: str, handler: _Handler) -> _Handler:
        served = _with_stages(name, handler, self._plumbing)
        self._served[name] = (handler, served)
        return served


def _with_stages(name: str, handler: _Handler, plumbing: _Plumbing) -> _Handler:
    """Wrap a handler of any of the four shapes as one that streams requests, which looks the same on the wire.

    Only then does a call have a context before its message has come. Messages stay bytes until the worker parses them.
    """
    if not handler.response_streaming:
        unary = _UnaryResponse(name, handler, plumbing)
        return grpc.stream_unary_rpc_method_handler(unary, None, handler.response_serializer)
    stream = _response_stream(_behaviour(handler))(name, handler, plumbing)
    return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)


def _response_stream(behaviour: Any) -> "type[_StreamResponse | _NonBlockingResponse]":
    if getattr(behaviour, "sends_by_response_stream", False):
        return _OutletResponse
    return _NonBlockingResponse if getattr(behaviour, "experimental_non_blocking", False) else _StreamResponse


def _behaviour(handler: _Handler) -> Any:
    """Return the servicer's method; a handler has exactly one of the four."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


class _Method:
    """One method with all its stages: made once, called on a worker for every call.

    Its public attributes are what grpcio and the pool look for on a behaviour.
    """

    experimental_non_blocking = False

    def __init__(self, name: str, handler: _Handler, plumbing: _Plumbing) -> None:
        policy = plumbing.policies.get(name, DENIED)
        shared = plumbing.stream_timeout if handler.request_streaming else plumbing.message_timeout
        self._name = name
        self._policy = policy
        self._behaviour = _behaviour(handler)
        self._verifier = plumbing.verifier
        self._signatures = plumbing.signatures if policy.signable else None
        self._is_stream = handler.request_streaming or handler.response_streaming
        self._patience = policy.patience or shared
        self._parser = MessageParser(parse=handler.request_deserializer, max_bytes=policy.max_request_bytes)
        self._argument_from = messages if handler.request_streaming else only_message
        # The row alone places a method: a pool that a servicer asked for would be unbounded.
        self._pool = plumbing.pools[policy.pool]
        self._slow_readers = plumbing.pools.slow_readers
        self._response_within_s = (policy.patience or plumbing.stream_timeout).limit_s
        self.experimental_thread_pool = self._pool
        # Without a token to check first, a call without a message has no business on a worker.
        self.first_message_within_s = self._patience.limit_s if policy.access is Access.PUBLIC else None

    def _open_rpc(self) -> Rpc:
        return Rpc(method=self._name, quiet=self._policy.quiet)

    def _admit(self, rpc: Rpc, context: Any) -> SignedCall | None:
        """Authentication, then policy; return what the message of a signed call is yet to be compared with."""
        if self._policy.access is Access.PUBLIC:
            return self._signed(rpc, context)
        rpc.caller = authenticate(context.invocation_metadata(), self._verifier)
        set_current_caller(rpc.caller)
        authorize(rpc.caller, self._policy.access)
        return None

    def _signed(self, rpc: Rpc, context: Any) -> SignedCall | None:
        if self._signatures is None:
            return None
        metadata = context.invocation_metadata()
        signed = self._signatures.admit(metadata, method=self._name, is_stream=self._is_stream)
        rpc.client_key = signed.key_id if signed else None
        return signed

    def _argument(self, requests: Any, signed: SignedCall | None) -> Any:
        """What the servicer's method takes: its message, or an iterator of messages."""
        parser = self._parser if signed is None else checked(self._parser, signed.check_body)
        return self._argument_from(RequestReader(requests, self._patience, self._pool.others_wait), parser)


class _UnaryResponse(_Method):
    def __call__(self, requests: Any, context: Any) -> Any:
        rpc = self._open_rpc()
        with request_scope(rpc, context), errors_as_status(context, method=self._name, call_id=rpc.call_id):
            signed = self._admit(rpc, context)
            return self._behaviour(self._argument(requests, signed), context)


class _StreamResponse(_Method):
    def __call__(self, requests: Any, context: Any) -> Iterator[Any]:
        rpc = self._open_rpc()
        # Open until the last response: what fails while responses are made must pass the same stages.
        with request_scope(rpc, context), errors_as_status(context, method=self._name, call_id=rpc.call_id):
            signed = self._admit(rpc, context)
            responses = self._behaviour(self._argument(requests, signed), context)
            yield from self._slow_readers.guard(responses, context, within_s=self._response_within_s)


class _NonBlockingResponse(_Method):
    """A response stream that keeps no worker: the servicer sends through a callback, long after it has returned."""

    experimental_non_blocking = True

    def __call__(self, requests: Any, context: Any, send_response: Callable[[Any], None]) -> None:
        rpc = self._open_rpc()
        open_rpc(rpc, context)
        shielded = _CallbacksOnWorkers(context, self._pool)
        if not shielded.add_callback(partial(log_finished, rpc, context)):
            log_finished(rpc, context)
        with errors_as_status(context, method=self._name, call_id=rpc.call_id):
            signed = self._admit(rpc, context)
            argument = self._argument(requests, signed)
            self._behaviour(argument, shielded, self._sender(context, send_response))

    def _sender(self, context: Any, send_response: Callable[[Any], None]) -> Any:
        """Return what the servicer sends with."""
        return partial(self._send, send_response, context)

    def _send(self, send_response: Callable[[Any], None], context: Any, response: Any) -> None:
        with self._slow_readers.sending(context, within_s=self._response_within_s):
            send_response(response)


class _OutletResponse(_NonBlockingResponse):
    """A response stream that keeps no worker and never waits: the servicer sends bytes through a `ResponseStream`.

    A method asks for it by an attribute, `sends_by_response_stream`. It watches itself how long a message goes unread.
    """

    def _sender(self, context: Any, send_response: Callable[[Any], None]) -> ResponseStream:  # noqa: ARG002 - it waits
        return ResponseStream(context)


class _CallbacksOnWorkers:
    """A call's context that keeps callbacks off grpcio's serving thread.

    There, one that waits for a lock stops the server: for good, if whoever holds the lock waits for a response to be
    sent. grpcio's own health service does that when one watcher leaves while another arrives.
    """

    def __init__(self, context: Any, pool: CallPool) -> None:
        self._context = context
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have `callback` run on a worker, in this context, when the call is over; False if it is over already."""
        in_context = partial(contextvars.copy_context().run, callback)
        added: bool = self._context.add_callback(lambda: self._pool.hand_over(in_context))
        return added
