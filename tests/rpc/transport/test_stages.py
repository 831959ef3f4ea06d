"""The promises that every method gets from the interceptor chain."""

import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from gatekeeper_grpc.domain.caller import current_caller
from gatekeeper_grpc.interceptors.chain import Stages
from gatekeeper_grpc.interceptors.policy import Access, Policy
from gatekeeper_grpc.transport.admission import CallPools, PoolName
from gatekeeper_grpc.transport.shares import PoolSize
from tests.support.stages import (
    EDIT,
    EDITOR_TOKEN,
    OPEN,
    SERVICE,
    STREAM,
    echo,
    echo_stream,
    error_info,
    fails,
    serve,
    stream,
    text,
    unary,
    verify_role_name,
)


def test_all_four_kinds_of_methods_are_served() -> None:
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


def test_a_handler_is_wrapped_once_and_not_for_every_call() -> None:
    handler = unary(echo)
    details = type("Details", (), {"method": f"/{SERVICE}/Echo"})()
    pools = CallPools()
    interceptor = Stages(verify_token=verify_role_name, pools=pools, policies={})

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
def test_a_unary_call_takes_only_its_first_message_like_grpcio(policy: Policy) -> None:
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


def test_the_caller_of_a_call_is_unknown_to_later_calls_of_the_worker() -> None:
    def who(_request: StringValue, _context: Any) -> StringValue:
        return text(current_caller().username)

    one_worker = {PoolName.ADMIN_WRITE: PoolSize(workers=1, queue=8)}
    anyone = Policy(access=Access.PUBLIC, pool=PoolName.ADMIN_WRITE)
    with serve({"Edit": (unary(who), EDIT), "Open": (unary(who), anyone)}, sizes=one_worker) as server:
        assert server.unary("Edit")(text(), metadata=EDITOR_TOKEN).value == "editor-anna"
        assert fails(server.unary("Open"), text()).code() is grpc.StatusCode.UNAUTHENTICATED


def test_each_call_runs_in_its_own_context() -> None:
    leak: contextvars.ContextVar[str] = contextvars.ContextVar("leak", default="clean")

    def sets(_request: StringValue, _context: Any) -> StringValue:
        before = leak.get()
        leak.set("dirty")
        return text(before)

    with serve({"Sets": (unary(sets), OPEN)}, sizes={PoolName.EVALUATION: PoolSize(workers=1, queue=8)}) as server:
        assert [server.unary("Sets")(text()).value for _ in range(3)] == ["clean"] * 3
