"""The server that the plumbing tests share, and the promises every method gets from the chain."""

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # Published without py.typed.
from grpc_status import rpc_status

from gatekeeper_grpc.domain.caller import Caller, Role, current_caller
from gatekeeper_grpc.domain.errors import Unauthenticated
from gatekeeper_grpc.interceptors.chain import MESSAGE_TIMEOUT, STREAM_TIMEOUT, build_interceptors
from gatekeeper_grpc.interceptors.policy import Access, Policy
from gatekeeper_grpc.transport.admission import DEFAULT_SIZES, CallPools, PoolName, PoolSize
from gatekeeper_grpc.transport.message_timeout import MessageTimeout

SERVICE = "test.v1.Plumbing"
EDITOR_TOKEN = (("authorization", "Bearer EDITOR"),)
VIEWER_TOKEN = (("authorization", "Bearer VIEWER"),)
OPEN = Policy(access=Access.PUBLIC, pool=PoolName.EVALUATION)
STREAM = Policy(access=Access.PUBLIC, pool=PoolName.STREAMS)
EDIT = Policy(access=Role.EDITOR, pool=PoolName.ADMIN)
TIMEOUT_S = 20.0


class RoleNames:
    """Accepts the name of a role as a token."""

    def verify(self, token: str) -> Caller:
        if token not in Role.__members__:
            raise Unauthenticated(f"unknown token {token}")
        return Caller(admin_id=1, username=f"{token.lower()}-anna", role=Role[token], token_epoch=1)


@dataclass(frozen=True)
class Server:
    pools: CallPools
    grpc_server: grpc.Server
    target: str
    channel: grpc.Channel

    def unary(self, name: str) -> Any:
        return self.channel.unary_unary(f"/{SERVICE}/{name}", StringValue.SerializeToString, StringValue.FromString)

    def raw(self, name: str) -> Any:
        """The same method for a client that sends any bytes, or none: nothing on the wire tells it from a unary one."""
        return self.channel.stream_unary(f"/{SERVICE}/{name}", None, StringValue.FromString)

    def stream(self, name: str) -> Any:
        return self.channel.stream_stream(f"/{SERVICE}/{name}", StringValue.SerializeToString, StringValue.FromString)


def unary(behaviour: Callable[[Any, Any], Any]) -> Any:
    return grpc.unary_unary_rpc_method_handler(behaviour, StringValue.FromString, StringValue.SerializeToString)


def stream(behaviour: Callable[[Any, Any], Any]) -> Any:
    return grpc.stream_stream_rpc_method_handler(behaviour, StringValue.FromString, StringValue.SerializeToString)


@contextmanager
def serve(
    methods: Mapping[str, tuple[Any, Policy | None]],
    *,
    sizes: Mapping[PoolName, PoolSize] = DEFAULT_SIZES,
    max_pending_calls: int = 2_000,
    message_timeout: MessageTimeout = MESSAGE_TIMEOUT,
    stream_timeout: MessageTimeout = STREAM_TIMEOUT,
) -> Iterator[Server]:
    """Serve `methods` (name -> handler, policy row if any) behind the real chain, with one connected client."""
    pools = CallPools({**DEFAULT_SIZES, **sizes}, max_pending_calls=max_pending_calls)
    interceptors = build_interceptors(
        verifier=RoleNames(),
        pools=pools,
        policies={f"/{SERVICE}/{name}": policy for name, (_handler, policy) in methods.items() if policy},
        message_timeout=message_timeout,
        stream_timeout=stream_timeout,
    )
    handlers = {name: handler for name, (handler, _policy) in methods.items()}
    with running(pools, interceptors, handlers) as server:
        yield server


@contextmanager
def running(pools: CallPools, interceptors: tuple[Any, ...], handlers: dict[str, Any]) -> Iterator[Server]:
    server = grpc.server(pools[PoolName.OPERATIONS], interceptors=[*interceptors], options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Server(pools=pools, grpc_server=server, target=f"127.0.0.1:{port}", channel=channel)
    finally:
        server.stop(None).wait(TIMEOUT_S)
        pools.close()


def echo(request: StringValue, _context: Any) -> StringValue:
    return request


def echo_stream(requests: Iterator[StringValue], _context: Any) -> Iterator[StringValue]:
    yield from requests


def fails(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make the call, which must fail, and return its error."""
    with pytest.raises(grpc.RpcError) as failure:
        exhaust(call(*args, timeout=TIMEOUT_S, **kwargs))
    return failure.value


def exhaust(result: Any) -> None:
    if isinstance(result, Iterator):
        list(result)


def error_info(error: Any) -> Any:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert [status.details[0].Unpack(info), info.domain] == [True, "gatekeeper"]
    return info


def text(value: str = "hello") -> StringValue:
    return StringValue(value=value)


def test_all_four_shapes_of_methods_are_served() -> None:
    def joined(requests: Iterator[StringValue], _context: Any) -> StringValue:
        return text("".join(request.value for request in requests))

    def letters(request: StringValue, _context: Any) -> Iterator[StringValue]:
        return (text(letter) for letter in request.value)

    codec = (StringValue.FromString, StringValue.SerializeToString)
    methods = {
        "UnaryUnary": (grpc.unary_unary_rpc_method_handler(echo, *codec), OPEN),
        "UnaryStream": (grpc.unary_stream_rpc_method_handler(letters, *codec), STREAM),
        "StreamUnary": (grpc.stream_unary_rpc_method_handler(joined, *codec), STREAM),
        "StreamStream": (grpc.stream_stream_rpc_method_handler(echo_stream, *codec), STREAM),
    }
    wire = (StringValue.SerializeToString, StringValue.FromString)
    with serve(methods) as server:
        path = f"/{SERVICE}"
        assert server.channel.unary_unary(f"{path}/UnaryUnary", *wire)(text("ab")) == text("ab")
        assert list(server.channel.unary_stream(f"{path}/UnaryStream", *wire)(text("ab"))) == [text("a"), text("b")]
        assert server.channel.stream_unary(f"{path}/StreamUnary", *wire)(map(text, "ab")) == text("ab")
        assert list(server.channel.stream_stream(f"{path}/StreamStream", *wire)(map(text, "ab"))) == [
            text("a"),
            text("b"),
        ]


def test_a_method_that_nobody_serves_stays_unimplemented() -> None:
    with serve({"Echo": (unary(echo), OPEN)}) as server:
        assert fails(server.unary("Other"), text()).code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_handler_is_wrapped_once_and_not_per_call() -> None:
    handler = unary(echo)
    details = type("Details", (), {"method": f"/{SERVICE}/Echo"})()
    pools = CallPools()
    (interceptor,) = build_interceptors(verifier=RoleNames(), pools=pools, policies={})

    first, again = (interceptor.intercept_service(lambda _details: handler, details) for _ in range(2))
    replaced = interceptor.intercept_service(lambda _details: unary(echo), details)

    pools.close()
    assert first is again
    assert replaced is not first


@pytest.mark.parametrize("pool", list(PoolName))
def test_a_method_runs_on_the_pool_of_its_row(pool: PoolName) -> None:
    def worker(_request: StringValue, _context: Any) -> StringValue:
        return text(threading.current_thread().name)

    with serve({"Worker": (unary(worker), Policy(access=Access.PUBLIC, pool=pool))}) as server:
        assert server.unary("Worker")(text()).value.startswith(f"gatekeeper-{pool}")


def test_requests_are_parsed_on_the_worker_and_not_on_the_serving_thread() -> None:
    def parse(_body: bytes) -> str:
        return threading.current_thread().name

    def parsed_by(parser: str, _context: Any) -> StringValue:
        return text(parser)

    handler = grpc.unary_unary_rpc_method_handler(parsed_by, parse, StringValue.SerializeToString)
    with serve({"Parsed": (handler, OPEN)}) as server:
        assert server.unary("Parsed")(text()).value.startswith("gatekeeper-evaluation")


@pytest.mark.parametrize(
    "body", [b"\x0a\xff", b"\x0a\x02\xff\xfe", b"\x0b"], ids=["cut short", "not UTF-8", "open group"]
)
def test_bytes_that_are_no_message_are_an_invalid_argument(body: bytes) -> None:
    with serve({"Echo": (unary(echo), OPEN), "Stream": (stream(echo_stream), STREAM)}) as server:
        raw_stream: Any = server.channel.stream_stream(f"/{SERVICE}/Stream", None, None)

        unary_error = fails(server.raw("Echo"), iter([body]))
        stream_error = fails(raw_stream, iter([body]))

    assert {unary_error.code(), stream_error.code()} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert {error_info(unary_error).reason, error_info(stream_error).reason} == {"INVALID_ARGUMENT"}


@pytest.mark.parametrize("policy", [OPEN, EDIT], ids=["open", "with a token"])
def test_a_unary_call_without_any_message_is_an_invalid_argument(policy: Policy) -> None:
    with serve({"Echo": (unary(echo), policy)}) as server:
        error = fails(server.raw("Echo"), iter([]), metadata=EDITOR_TOKEN)

    assert (error.code(), error_info(error).reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


@pytest.mark.parametrize("policy", [OPEN, EDIT], ids=["open", "with a token"])
def test_a_unary_call_takes_its_first_message_like_grpcio(policy: Policy) -> None:
    bodies = [text("first").SerializeToString(), text("second").SerializeToString()]
    with serve({"Echo": (unary(echo), policy)}) as server:
        assert server.raw("Echo")(iter(bodies), metadata=EDITOR_TOKEN) == text("first")


def test_an_empty_message_is_a_message() -> None:
    with serve({"Echo": (unary(echo), OPEN)}) as server:
        assert server.raw("Echo")(iter([b""])) == text("")


def test_a_message_above_the_limit_of_its_row_is_an_invalid_argument() -> None:
    policy = Policy(access=Access.PUBLIC, pool=PoolName.EVALUATION, max_request_bytes=10)
    with serve({"Echo": (unary(echo), policy)}) as server:
        assert server.unary("Echo")(text("x" * 8)) == text("x" * 8)
        error = fails(server.unary("Echo"), text("x" * 9))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "request must be at most 10 bytes long, not 11"


def test_the_caller_is_known_to_the_call_and_to_no_later_call_on_the_same_worker() -> None:
    def who(_request: StringValue, _context: Any) -> StringValue:
        return text(current_caller().username)

    one_worker = {PoolName.ADMIN: PoolSize(workers=1, queue=8)}
    anyone = Policy(access=Access.PUBLIC, pool=PoolName.ADMIN)
    with serve({"Edit": (unary(who), EDIT), "Open": (unary(who), anyone)}, sizes=one_worker) as server:
        assert server.unary("Edit")(text(), metadata=EDITOR_TOKEN).value == "editor-anna"
        assert fails(server.unary("Open"), text()).code() is grpc.StatusCode.UNAUTHENTICATED


def test_each_call_runs_in_a_context_of_its_own() -> None:
    leak: contextvars.ContextVar[str] = contextvars.ContextVar("leak", default="clean")

    def sets(_request: StringValue, _context: Any) -> StringValue:
        before = leak.get()
        leak.set("dirty")
        return text(before)

    with serve({"Sets": (unary(sets), OPEN)}, sizes={PoolName.EVALUATION: PoolSize(workers=1, queue=8)}) as server:
        assert [server.unary("Sets")(text()).value for _ in range(3)] == ["clean"] * 3
