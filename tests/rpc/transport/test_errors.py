"""Errors: what the client receives, and what the log says."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue

from gatekeeper_grpc.domain.errors import InvalidArgument, NotFound
from gatekeeper_grpc.interceptors.policy import Access, Policy
from gatekeeper_grpc.interceptors.request_scope import CALL_ID_KEY
from gatekeeper_grpc.operations.logs import add_call_id
from gatekeeper_grpc.transport.admission import PoolName
from tests.support.stages import (
    EDIT,
    EDITOR_TOKEN,
    OPEN,
    STREAM,
    TIMEOUT_S,
    echo,
    echo_stream,
    error_info,
    fails,
    serve,
    stream,
    text,
    unary,
)

pytestmark = pytest.mark.usefixtures("either_state")

SECRET = "postgresql://u:hunter2@db"  # pragma: allowlist secret


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs([add_call_id]) as lines:
        yield lines


def lines_of(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event]


def call_id(call: Any) -> Any:
    return dict(call.trailing_metadata())[CALL_ID_KEY]


def missing_flag(_request: Any, _context: Any) -> Any:
    raise NotFound.flag("beta")


def bug(_request: Any, _context: Any) -> Any:
    raise RuntimeError(SECRET)


def bug_after_one(_requests: Any, _context: Any) -> Iterator[StringValue]:
    yield text("fine so far")
    raise RuntimeError(SECRET)


def test_a_domain_error_becomes_its_status_with_details_and_call_id(logs: list[Any]) -> None:
    with serve({"Get": (unary(missing_flag), OPEN)}) as server:
        error = fails(server.unary("Get"), text())

    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "flag 'beta' does not exist")
    assert (error_info(error).reason, dict(error_info(error).metadata)) == ("FLAG_NOT_FOUND", {"flag_key": "beta"})
    (line,) = logs
    assert (line["event"], line["code"], line["call_id"]) == ("rpc", "NOT_FOUND", call_id(error))


def test_an_unexpected_error_is_internal_and_keeps_its_text_in_the_log(logs: list[Any]) -> None:
    with serve({"Get": (unary(bug), OPEN)}) as server:
        error = fails(server.unary("Get"), text())

    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert "hunter2" not in str(error.trailing_metadata())
    (line,) = lines_of(logs, "rpc_failed")
    assert line["exc_info"]
    assert line["call_id"] == error_info(error).metadata["call_id"] == call_id(error)


def test_an_error_after_the_first_response_of_a_stream_is_mapped_too(logs: list[Any]) -> None:
    with serve({"Stream": (stream(bug_after_one), STREAM)}) as server:
        responses = server.stream("Stream")(iter([text()]), timeout=TIMEOUT_S)
        assert next(responses) == text("fine so far")
        with pytest.raises(grpc.RpcError) as failure:
            next(responses)

    error: Any = failure.value
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert len(lines_of(logs, "rpc_failed")) == len(lines_of(logs, "rpc")) == 1


def test_an_error_while_requests_are_iterated_is_mapped_too() -> None:
    def refuses_the_second(requests: Iterator[StringValue], _context: Any) -> Iterator[StringValue]:
        yield next(requests)
        next(requests)
        raise InvalidArgument.of("contexts", "must not be empty")

    with serve({"Stream": (stream(refuses_the_second), STREAM)}) as server:
        error = fails(server.stream("Stream"), iter([text(), text()]))

    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "contexts must not be empty")


def test_an_abort_of_a_third_party_servicer_is_not_changed(logs: list[Any]) -> None:
    def aborts(_request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.OUT_OF_RANGE, "too far")

    def aborts_late(_requests: Any, context: Any) -> Iterator[StringValue]:
        yield text()
        context.abort(grpc.StatusCode.OUT_OF_RANGE, "too far")

    with serve({"Unary": (unary(aborts), OPEN), "Stream": (stream(aborts_late), STREAM)}) as server:
        errors = [fails(server.unary("Unary"), text()), fails(server.stream("Stream"), iter([text()]))]

    assert {(error.code(), error.details()) for error in errors} == {(grpc.StatusCode.OUT_OF_RANGE, "too far")}
    assert [(line["event"], line["code"]) for line in logs] == [("rpc", "OUT_OF_RANGE")] * 2


def test_a_failed_call_to_another_service_is_our_internal_error() -> None:
    def calls_out(_request: Any, _context: Any) -> Any:
        raise grpc.RpcError(SECRET)

    with serve({"Get": (unary(calls_out), OPEN)}) as server:
        assert fails(server.unary("Get"), text()).code() is grpc.StatusCode.INTERNAL


def test_a_client_that_disconnects_is_logged_as_cancelled(logs: list[Any]) -> None:
    answered, closed = threading.Event(), threading.Event()

    def until_cancelled(requests: Iterator[StringValue], context: Any) -> Iterator[StringValue]:
        context.add_callback(closed.set)
        yield next(requests)
        answered.set()
        assert closed.wait(TIMEOUT_S)
        yield next(requests)

    never = threading.Event()

    def one_and_silence() -> Iterator[StringValue]:
        yield text()
        never.wait(TIMEOUT_S)

    with serve({"Stream": (stream(until_cancelled), STREAM)}) as server:
        call = server.stream("Stream")(one_and_silence())
        next(call)
        assert answered.wait(TIMEOUT_S)
        call.cancel()
        never.set()
        assert closed.wait(TIMEOUT_S)
        server.grpc_server.stop(None).wait(TIMEOUT_S)
        server.pools[PoolName.BULK].shutdown(wait=True)

    assert [(line["event"], line["code"]) for line in logs] == [("rpc", "CANCELLED")]


def test_a_finished_call_is_one_line_that_holds_no_token(logs: list[Any]) -> None:
    with serve({"Edit": (unary(echo), EDIT)}) as server:
        _response, call = server.unary("Edit").with_call(text("a context value"), metadata=EDITOR_TOKEN)

    (line,) = logs
    assert line.pop("duration_ms") >= 0
    assert (line.pop("peer")[:5], line.pop("user_agent")[:12]) == ("ipv4:", "grpc-python/")
    assert line == {
        "event": "rpc",
        "log_level": "info",
        "method": "/test.v1.TestService/Edit",
        "code": "OK",
        "caller": "editor-anna",
        "call_id": call_id(call),
    }


def test_a_finished_stream_is_one_line() -> None:
    with (
        structlog.testing.capture_logs() as logs,
        serve({"Stream": (stream(echo_stream), STREAM)}) as server,
    ):
        assert len(list(server.stream("Stream")(iter([text()] * 3)))) == 3
    assert [(line["event"], line["code"]) for line in logs] == [("rpc", "OK")]


@pytest.mark.parametrize(("behaviour", "level"), [(echo, "debug"), (missing_flag, "info")], ids=["success", "failure"])
def test_a_quiet_method_logs_its_successes_at_debug(behaviour: Any, level: str, logs: list[Any]) -> None:
    quiet = Policy(access=Access.PUBLIC, pool=PoolName.EVALUATION, quiet=True)
    with serve({"Echo": (unary(behaviour), quiet)}) as server:
        call = server.unary("Echo").future(text())
        call.exception()

    assert [line["log_level"] for line in logs] == [level]


def test_every_call_has_its_own_id() -> None:
    with serve({"Echo": (unary(echo), OPEN)}) as server:
        ids = {call_id(server.unary("Echo").with_call(text())[1]) for _ in range(20)}

    assert len(ids) == 20


def test_a_non_blocking_method_has_its_errors_mapped_and_its_end_logged(logs: list[Any]) -> None:
    def watch(_requests: Any, _context: Any, send_response: Any = None) -> None:
        send_response(text("first"))
        raise NotFound.flag("beta")

    watch.experimental_non_blocking = True  # type: ignore[attr-defined] # What grpcio looks for.
    with serve({"Watch": (stream(watch), STREAM)}) as server:
        error = fails(server.stream("Watch"), iter([text()]))
        server.grpc_server.stop(None).wait(TIMEOUT_S)
        server.pools[PoolName.BULK].shutdown(wait=True)

    assert (error.code(), error_info(error).reason) == (grpc.StatusCode.NOT_FOUND, "FLAG_NOT_FOUND")
    assert [(line["event"], line["code"], line["call_id"]) for line in logs] == [("rpc", "NOT_FOUND", call_id(error))]
