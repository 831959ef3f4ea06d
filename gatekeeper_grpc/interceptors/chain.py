"""The interceptor: the stages that every call passes, and the reason for their order."""

import contextvars
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from gatekeeper_grpc.auth.client_calls import ClientCall, ClientVerifier
from gatekeeper_grpc.domain.caller import Caller, caller_check_age_s, set_current_caller
from gatekeeper_grpc.domain.errors import ResourceExhausted, Unauthenticated
from gatekeeper_grpc.instrumentation.counters import SURPLUS_CALLS
from gatekeeper_grpc.interceptors.authentication import VerifyToken, authenticate, has_token
from gatekeeper_grpc.interceptors.body import (
    MessageParser,
    MessageSerializer,
    checked,
    messages,
    only_message,
    with_short_texts,
)
from gatekeeper_grpc.interceptors.errors import end_with
from gatekeeper_grpc.interceptors.line_samples import LineSamples
from gatekeeper_grpc.interceptors.policy import DENIED, POLICIES, Access, CountsAs, Policy, authorize, may_call
from gatekeeper_grpc.interceptors.rate_limits import NO_LIMITS, ContextMeter, RateLimits, budget_metadata
from gatekeeper_grpc.interceptors.request_scope import (
    MethodDurations,
    Rpc,
    answer_call,
    end_refused,
    log_finished,
    logs_answers,
    may_answer_at_once,
    open_rpc,
)
from gatekeeper_grpc.interceptors.tracing import echo, trace_id_of
from gatekeeper_grpc.interceptors.unknown_method import NearestMethod, unknown_method_handler
from gatekeeper_grpc.transport.admission import CallPool, CallPools, PoolName
from gatekeeper_grpc.transport.arrival import ADMIN_USER, CLIENT_KEY, Arrival, Owner, stranger
from gatekeeper_grpc.transport.grpcio_internals import (
    ArrivedCall,
    GrpcResponseStream,
    Metadata,
    RequestReader,
    SurplusCall,
    arrival_of,
    check_stream,
)
from gatekeeper_grpc.transport.listener import Interceptor
from gatekeeper_grpc.transport.message_timeout import MessageTimeout
from gatekeeper_grpc.transport.stream_life import StreamLife
from gatekeeper_grpc.wire.status import status_from_error

# On a busy machine, grpcio may take 100 ms to deliver a message that has arrived: a second is enough when saturated.
MESSAGE_TIMEOUT = MessageTimeout(limit_s=5.0, limit_when_saturated_s=1.0)
STREAM_TIMEOUT = MessageTimeout(limit_s=15.0, limit_when_saturated_s=5.0)
MAX_AGES_S: Mapping[PoolName, float] = MappingProxyType(
    {PoolName.BULK: 3_600.0, PoolName.PREVIEW: 3_600.0, PoolName.REFLECTION: 60.0, PoolName.WATCH: 43_200.0}
)
# A stream's own transaction sees one state of the database, in which its caller stays what they were.
CALLER_CHECK_INTERVAL_S = 0.5
# Of a longer message, the serving thread would not know what it costs.
_MAX_ANSWERED_BYTES = 4 << 10
_SURPLUS = status_from_error(
    ResourceExhausted("too many calls wait for their turn; retry later", retry_after_s=1.0), ""
)

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]  # Messages of any method.
else:
    _Handler = grpc.RpcMethodHandler  # Generic in its published types only.


@dataclass(frozen=True, kw_only=True, eq=False)
class Stages(Interceptor):
    """The interceptor: what every call passes between grpcio and its servicer, outermost stage first.

    1. **Request scope**: all log lines of the call carry its id; the last one has the status that the client receives.
    2. **Errors**: outside every stage that may fail. Otherwise a refusal reaches the client as UNKNOWN, with the text
       of the exception.
    3. **Policy**: needs the caller; still before the message.
    4. **Body**: received before a worker takes the call, parsed last and on the worker. The body of a signed call is
       compared with its signature before that.

    **Authentication** comes before all of them (`_Method.arrive`), on the serving thread and from metadata alone: a
    refusal costs no worker, does not wait for the message, and an unknown client cannot make the server buffer one.
    **Rate limits** follow at once, for the same reasons, and because they count by who calls.

    The stages are one interceptor. With several, grpcio would call each on its serving thread and wrap the handler
    again for every call. Here the stages of a method are built once, and a call costs that thread a dict lookup.
    """

    verify_token: VerifyToken
    """Verifies access tokens and API tokens."""
    pools: CallPools
    """The workers; close them after the server."""
    policies: Mapping[str, Policy] = field(default_factory=lambda: POLICIES)
    """One row per method, keyed by full name ("/package.Service/Method"). A method without a row is denied."""
    check_caller: Callable[[], None] = lambda: None
    """Compares the caller of the current call with the stored admin user; raises Unauthenticated if it differs. Called
    before an answer that no transaction has checked, and again and again while a stream is answered.
    """
    note_lapsed: Callable[[Caller], None] = lambda _caller: None
    """Told of callers whom a transaction refuses although their token was let in."""
    clients: ClientVerifier | None = None
    """Verifies client keys and signatures of signable methods; None: they are neither required nor read."""
    rate_limits: RateLimits = NO_LIMITS
    """Count calls, and refuse those of clients that call too often."""
    message_checks: Mapping[str, Callable[[ArrivedCall], None]] = field(default_factory=dict)
    """By method: refuses a call by its first message, before it takes a slot. Runs on the serving thread."""
    answers: Mapping[str, Callable[[Any], bytes | None]] = field(default_factory=dict)
    """By public method: makes the response to a message if it is certain, small and cheap; otherwise returns None. On
    the serving thread.
    """
    message_timeout: MessageTimeout = MESSAGE_TIMEOUT
    """How long the message of a unary request may take."""
    stream_timeout: MessageTimeout = STREAM_TIMEOUT
    """How long a request stream may be silent, and a response unread."""
    max_ages_s: Mapping[PoolName, float] = field(default_factory=lambda: MAX_AGES_S)
    """How long a stream may be open, by pool; infinite for a pool that is not here."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """The variable of the listener that serves a method, for those that other listeners serve."""
    samples: LineSamples = field(default_factory=LineSamples, repr=False)
    """Which of many similar failures get a line in the log."""
    _nearest: NearestMethod = field(init=False, repr=False)
    _durations: Mapping[str, MethodDurations] = field(init=False, repr=False)
    _served: dict[str, tuple[_Handler, _Handler]] = field(init=False, default_factory=dict, repr=False)
    """By method: the servicer's handler, and the one with its stages."""

    def __post_init__(self) -> None:
        """Know the names of the methods, and have a series of each in the metrics from the start."""
        object.__setattr__(self, "_durations", {method: MethodDurations(method) for method in self.policies})
        object.__setattr__(self, "_nearest", NearestMethod(self.policies))

    def intercept_service(
        self, continuation: Callable[[Any], _Handler | None], handler_call_details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        """Return the handler with its stages; of an unknown method, one that refuses the call.

        Runs on the one serving thread, so takes constant time.
        """
        name, handler = handler_call_details.method, continuation(handler_call_details)
        if handler is None:
            refusing: _Handler = unknown_method_handler(
                name, self._nearest, self.pools[PoolName.OPERATIONS], elsewhere=self.elsewhere
            )
            return refusing
        known, served = self._served.get(name, (None, None))
        if known is not handler:
            served = _with_stages(name, handler, self)
            self._served[name] = (handler, served)
        return served

    def refuse_surplus(self, call: SurplusCall) -> tuple[grpc.Status, Metadata]:
        """Count, time and log a call for which there is no room, unless its method is unknown; return how it ends."""
        SURPLUS_CALLS.inc()
        if (durations := self._durations.get(call.method)) is not None:
            end_refused(call.method, durations, self.samples, call, _SURPLUS)
        return _SURPLUS, (*(_SURPLUS.trailing_metadata or ()), *echo(trace_id_of(call.metadata)))


def _with_stages(name: str, handler: _Handler, stages: Stages) -> _Handler:
    """Wrap a handler of any of the four kinds as one that streams requests, which is the same on the wire.

    Only such a handler has a context before the message is here. Messages stay bytes until the worker parses them.
    """
    if not handler.response_streaming:
        unary = _UnaryResponse(name, handler, stages)
        return grpc.stream_unary_rpc_method_handler(unary, None, None)
    behaviour = _behaviour(handler)
    marks = ("sends_by_response_stream", "experimental_non_blocking")
    if any(getattr(behaviour, mark, False) for mark in marks):
        non_blocking = _NonBlockingResponse(name, handler, stages)
        return grpc.stream_stream_rpc_method_handler(non_blocking, None, handler.response_serializer)
    return grpc.stream_stream_rpc_method_handler(_StreamResponse(name, handler, stages), None, None)


def _behaviour(handler: _Handler) -> Any:
    """Return the servicer's method; a handler has exactly one of the four."""
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def _accept() -> None:
    """Accept a call without a credential."""


def _check_nothing(_call: ArrivedCall) -> None:
    """Refuse no call by its message."""


class _Method:
    """One method with its stages: built once, called on a worker for every call.

    grpcio and the pool read its public attributes.
    """

    experimental_non_blocking = False

    def __init__(self, name: str, handler: _Handler, stages: Stages) -> None:
        policy = stages.policies.get(name, DENIED)
        default = stages.stream_timeout if handler.request_streaming else stages.message_timeout
        self._name = name
        self._durations = MethodDurations(name)
        self._samples = stages.samples
        self._policy = policy
        self._is_public = policy.access is Access.PUBLIC
        self._behaviour = _behaviour(handler)
        self._verify_token = stages.verify_token
        self._check_caller = stages.check_caller
        self._note_lapsed = stages.note_lapsed
        self._clients = stages.clients if policy.signable else None
        self._takes_stream = handler.request_streaming
        self.is_stream = handler.request_streaming or handler.response_streaming
        self._timeout = policy.timeout or default
        if not handler.request_streaming:  # The refusal of a stream says what was applied, so the servicer makes it.
            self.max_request_bytes = policy.max_request_bytes
        self._parser = MessageParser(parse=handler.request_deserializer, max_bytes=policy.max_request_bytes)
        self._serialize = MessageSerializer(handler.response_serializer, advice=policy.when_too_large)
        self._argument_from = messages if handler.request_streaming else only_message
        # Only the policy row selects the pool: one that a servicer brought along would be unbounded.
        self._pool = stages.pools[policy.pool]
        self._slow_readers = stages.pools.slow_readers
        self._response_within_s = (policy.timeout or stages.stream_timeout).limit_s
        self.experimental_thread_pool = self._pool
        self._open_streams = stages.pools.open_streams
        self._max_age_s = stages.max_ages_s.get(policy.pool, inf) if self.is_stream else inf
        self.first_message_within_s = self._timeout.limit_s
        self._ask_about_rate = stages.rate_limits.sharing(policy.counts_as)
        self._admit_by_rate = stages.rate_limits.admitting(policy.counts_as)
        self._check_message = stages.message_checks.get(name, _check_nothing)

    def _open_rpc(self, context: Any) -> Rpc:
        rpc = Rpc(method=self._name, durations=self._durations, quiet=self._policy.quiet, samples=self._samples)
        open_rpc(rpc, context)
        return rpc

    def arrive(self, call: ArrivedCall) -> Arrival:
        """Authenticate a call by its metadata and count it: on the serving thread, so without I/O and in some 100 us.

        Raises:
            Unauthenticated: The token, client key or signature is missing, where one is required, or not valid.
            RateLimited: Its caller has called too often.
        """
        arrival = self._authenticate(call)
        return arrival if self._admit_by_rate is None else self._admit_by_rate(call, arrival)

    def _authenticate(self, call: ArrivedCall) -> Arrival:
        if self._is_public:
            return self._arrive_in_public(call)
        if self._policy.token_optional and not has_token(call.metadata):
            return stranger(call.client)
        caller = authenticate(call.metadata, self._verify_token)
        owner = Owner(ADMIN_USER, caller.admin_id)
        return Arrival(owner=owner, caller=caller, is_denied=not may_call(caller, self._policy))

    @staticmethod
    def echoed(metadata: Metadata) -> Metadata:
        """Return what a refused call gets back of its metadata, as one that is served does: on the serving thread."""
        return echo(trace_id_of(metadata))

    def refused(self, call: ArrivedCall, status: grpc.Status) -> None:
        """Time and log a call that no worker will serve: on the serving thread."""
        end_refused(self._name, self._durations, self._samples, call, status)

    def check_message(self, call: ArrivedCall) -> None:
        """Check the first message and cut its texts, before it waits for a worker: on the serving thread.

        Raises:
            InvalidArgument: It is not a message of the method's type, and longer than its texts may be.
            ResourceExhausted: There were too many failed logins.
        """
        self._check_message(call)
        body, max_chars = call.message, self._policy.max_text_chars
        if body is not None and max_chars is not None and len(body) > max_chars:
            call.replace_message(with_short_texts(self._parser(body), max_chars=max_chars))

    def answer(self, _call: ArrivedCall) -> bool:
        """Answer a call whose message is here, on the serving thread; return whether that is done."""
        return False

    def _arrive_in_public(self, call: ArrivedCall) -> Arrival:
        if self._clients is not None:
            client = self._clients.verify(call, method=self._name, is_stream=self.is_stream)
            if client is not None:
                return Arrival(owner=Owner(CLIENT_KEY, client.key_id), client=client)
        return stranger(call.client)

    def _end(self, error: Exception, rpc: Rpc, context: Any) -> NoReturn:
        """End the call with the status of `error`; call it where `error` is handled."""
        rpc.error = error
        if isinstance(error, Unauthenticated) and rpc.caller is not None:
            self._note_lapsed(rpc.caller)
        end_with(error, context, method=self._name, call_id=rpc.call_id)

    def _admit(self, rpc: Rpc, context: Any) -> ClientCall | None:
        """Authorize; return the client whose call it is, if it has said so: the message must match its signature."""
        arrival = arrival_of(context)
        if arrival.caller is not None:
            rpc.caller = arrival.caller
            set_current_caller(arrival.caller)
            authorize(arrival.caller, self._policy)
        budget = arrival.budget if self._ask_about_rate is None else self._ask_about_rate(arrival)
        if budget is not None and arrival.caller is not None:
            context.set_trailing_metadata((*context.trailing_metadata(), *budget_metadata(budget)))
        client: ClientCall | None = arrival.client
        if client is not None and self._clients is not None:
            rpc.client_key = client.key_id
            self._clients.use(client)
        return client

    def _require_caller(self, *, checked_within_s: float = inf) -> None:
        """Check the caller of a method that needs one, unless a transaction of this call has done so in time."""
        if not self._is_public and caller_check_age_s() >= checked_within_s:
            self._check_caller()

    def _life(self, rpc: Rpc, client: ClientCall | None) -> StreamLife:
        if not self.is_stream:
            return StreamLife(self._timeout)
        check = _accept if rpc.caller is None else rpc.caller.check_token_time
        if client is not None and self._clients is not None:
            check = partial(self._clients.check_key, client)
        return StreamLife(self._timeout, max_age_s=self._max_age_s, check_credential=check)

    def _argument(self, requests: Any, client: ClientCall | None, life: StreamLife) -> Any:
        """Return the argument of the servicer's method: its message, or an iterator of messages."""
        parser: Callable[[bytes], Any] = self._parser
        if client is not None and self._clients is not None:
            parser = checked(parser, partial(self._clients.check_body, client))
        reader = RequestReader(requests, life, self._pool.is_saturated, takes_stream=self._takes_stream)
        argument = self._argument_from(reader, parser)
        if not self._takes_stream:
            return argument
        if self._policy.progress_field is None:
            return self._noting_progress(argument, life)
        charges = arrival_of(requests).charges if self._policy.counts_as is CountsAs.EVALUATION else ()
        return self._metered(argument, life, self._policy.progress_field, ContextMeter(charges))

    def _noting_progress(self, requests: Iterator[Any], life: StreamLife) -> Iterator[Any]:
        for request in requests:
            life.progressed()
            yield request

    def _metered(self, requests: Iterator[Any], life: StreamLife, field: str, meter: ContextMeter) -> Iterator[Any]:
        """Note the progress of a stream whose messages have items in `field`, and count the items."""
        for request in requests:
            items = len(getattr(request, field))
            if items:
                life.progressed()
                meter.add(items)
            yield request


class _UnaryResponse(_Method):
    def __init__(self, name: str, handler: _Handler, stages: Stages) -> None:
        super().__init__(name, handler, stages)
        self._answer = stages.answers.get(name)
        self._logs_answers = logs_answers()

    @property
    def answers_at_once(self) -> bool:
        """Whether some of its calls are answered where they arrive."""
        return self._answer is not None

    def answer(self, call: ArrivedCall) -> bool:
        """Answer a call at once if nothing can go wrong (decision 0050); what can is for a worker."""
        body, arrival = call.message, call.arrival
        if self._answer is None or body is None or len(body) > _MAX_ANSWERED_BYTES or not may_answer_at_once(call):
            return False
        client: ClientCall | None = arrival.client
        if client is not None and client.nonce is not None:
            return False
        try:
            response = self._answer(self._parser(body))
        except Exception:  # noqa: BLE001 - a worker meets it again, and says it properly
            return False
        return response is not None and self._send(call, response, client)

    def _send(self, call: ArrivedCall, response: bytes, client: ClientCall | None) -> bool:
        key_id = client.key_id if client else ""
        is_sent = answer_call(self._name, self._durations, call, response, key_id, is_logged=self._logs_answers)
        if is_sent and client is not None and self._clients is not None:
            self._clients.use(client)
        return is_sent

    def __call__(self, requests: Any, context: Any) -> Any:
        rpc = self._open_rpc(context)
        try:
            client = self._admit(rpc, context)
            argument = self._argument(requests, client, self._life(rpc, client))
            response = self._serialize(self._behaviour(argument, context))
            self._require_caller()
        except Exception as error:  # noqa: BLE001 - all become a status
            self._end(error, rpc, context)
        else:
            return response
        finally:
            log_finished(rpc, context)


class _StreamResponse(_Method):
    def __call__(self, requests: Any, context: Any) -> Iterator[Any]:
        rpc = self._open_rpc(context)
        # The scope is open until the last response: an error between responses must pass the same stages.
        try:
            client = self._admit(rpc, context)
            life = self._life(rpc, client)
            responses = self._behaviour(self._argument(requests, client, life), context)
            for response in self._slow_readers.guard(responses, context, within_s=self._response_within_s):
                life.check()
                check_stream(context)
                self._require_caller(checked_within_s=CALLER_CHECK_INTERVAL_S)
                yield self._serialize(response)
        except Exception as error:  # noqa: BLE001 - all become a status
            self._end(error, rpc, context)
        finally:
            log_finished(rpc, context)


class _NonBlockingResponse(_Method):
    """A response stream that keeps no worker: the servicer sends after it has returned.

    The third argument of the servicer's method is what it sends with: a callback, as grpcio has it, or, if the method
    has the attribute `sends_by_response_stream`, a `GrpcResponseStream`. That one never waits, and the servicer cancels
    clients that do not read.
    """

    experimental_non_blocking = True

    def __call__(self, requests: Any, context: Any, send_response: Callable[[Any], None]) -> None:
        rpc = self._open_rpc(context)
        worker_context = _CallbacksOnWorkers(context, self._pool)
        if not worker_context.add_callback(partial(log_finished, rpc, context)):
            log_finished(rpc, context)
        by_stream = getattr(self._behaviour, "sends_by_response_stream", False)
        send = GrpcResponseStream(context) if by_stream else partial(self._send, send_response, context)
        try:
            client = self._admit(rpc, context)
            self._behaviour(self._argument(requests, client, self._life(rpc, client)), worker_context, send)
            if self._max_age_s < inf:
                self._keep_within_limits(worker_context, GrpcResponseStream(context), rpc.client_key)
        except Exception as error:  # noqa: BLE001 - all become a status
            self._end(error, rpc, context)

    def _keep_within_limits(self, context: "_CallbacksOnWorkers", stream: GrpcResponseStream, key: str | None) -> None:
        """End the stream, which goes on without this worker, at its greatest age or with its key."""
        opened = self._open_streams.add(stream, max_age_s=self._max_age_s, key_id=key)
        remove = partial(self._open_streams.remove, opened)
        if not context.add_callback(remove):
            remove()

    def _send(self, send_response: Callable[[Any], None], context: Any, response: Any) -> None:
        with self._slow_readers.sending(context, within_s=self._response_within_s):
            send_response(response)


class _CallbacksOnWorkers:
    """A call's context whose callbacks run on workers, not on grpcio's serving thread.

    On the serving thread, a callback that waits for a lock stops the server, and deadlocks it if the holder of the lock
    waits until a response is sent. grpcio's own health service does that when a watcher leaves as another arrives.
    """

    def __init__(self, context: Any, pool: CallPool) -> None:
        self._context = context
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Run `callback` on a worker, in this context, when the call is over; False if it is over already."""
        in_context = partial(contextvars.copy_context().run, callback)
        added: bool = self._context.add_callback(lambda: self._pool.run_on_worker(in_context))
        return added
