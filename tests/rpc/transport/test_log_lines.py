"""The line of a call: who called what from where, why it failed, to which trace it belongs; of floods, a sample."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import structlog

from gatekeeper_grpc.domain.errors import InvalidArgument, NotFound
from gatekeeper_grpc.interceptors import line_samples
from gatekeeper_grpc.interceptors.line_samples import LINES_A_MINUTE, LineSamples
from gatekeeper_grpc.interceptors.policy import Access, Policy
from gatekeeper_grpc.interceptors.request_scope import log_left_out
from gatekeeper_grpc.interceptors.tracing import REQUEST_ID_KEY
from gatekeeper_grpc.operations.logs import add_call_id
from gatekeeper_grpc.transport.admission import PoolName
from tests.support.stages import EDIT, OPEN, echo, fails, serve, text, unary

QUIET = Policy(access=Access.PUBLIC, pool=PoolName.EVALUATION, quiet=True)
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
FAILURES = LINES_A_MINUTE + 5


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs([add_call_id]) as lines:
        yield lines


def missing_flag(_request: Any, _context: Any) -> Any:
    raise NotFound.flag("beta")


def missing_odd_flag(_request: Any, _context: Any) -> Any:
    raise NotFound.flag("somebody's e-mail: anna@example.com")


def wrong_attribute(_request: Any, _context: Any) -> Any:
    raise InvalidArgument.of("contexts[3].attributes.income", "must be a number")


def line_of(logs: list[Any], behaviour: Any, policy: Policy = OPEN, **call: Any) -> dict[str, Any]:
    """The line of one call."""
    with serve({"Get": (unary(behaviour), policy)}) as server:
        server.unary("Get").future(text(), **call).exception()
    (line,) = (line for line in logs if line["event"] == "rpc")
    return dict(line)


def test_a_line_says_where_the_call_came_from_and_by_what(logs: list[Any]) -> None:
    line = line_of(logs, echo)

    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["user_agent"].startswith("grpc-python/")


def test_a_failure_is_logged_with_its_reason_and_resource(logs: list[Any]) -> None:
    line = line_of(logs, missing_flag)

    assert (line["code"], line["reason"], line["resource"]) == ("NOT_FOUND", "FLAG_NOT_FOUND", "flag/beta")


def test_a_field_is_logged_without_the_name_of_an_attribute(logs: list[Any]) -> None:
    line = line_of(logs, wrong_attribute)

    assert (line["reason"], line["field"]) == ("INVALID_ARGUMENT", "contexts[3].attributes")


def test_what_no_resource_can_be_called_is_not_logged(logs: list[Any]) -> None:
    line = line_of(logs, missing_odd_flag)

    assert "resource" not in line
    assert "anna" not in str(line)


@pytest.mark.parametrize(
    ("metadata", "trace_id"),
    [
        ((("traceparent", TRACEPARENT),), TRACE_ID),
        ((("x-request-id", "order-4711"),), "order-4711"),
        ((("x-request-id", "order-4711"), ("traceparent", TRACEPARENT)), TRACE_ID),
        ((("traceparent", TRACEPARENT.replace("4bf9", "4BF9")),), None),
        ((("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01"),), None),
        ((("x-request-id", "two words"),), None),
        ((("x-request-id", "x" * 65),), None),
        ((), None),
    ],
    ids=["traceparent", "request id", "both", "upper case", "zeros", "space", "too long", "none"],
)
def test_a_line_and_the_answer_have_the_id_of_the_trace(metadata: Any, trace_id: str | None, logs: list[Any]) -> None:
    with serve({"Get": (unary(echo), OPEN)}) as server:
        _, call = server.unary("Get").with_call(text(), metadata=metadata)
    (line,) = logs

    assert line.get("trace_id") == trace_id
    assert dict(call.trailing_metadata()).get(REQUEST_ID_KEY) == trace_id


@pytest.mark.parametrize("method", ["Get", "Got"], ids=["without a token", "of a method that does not exist"])
def test_a_call_that_is_refused_gets_its_request_id_back(method: str) -> None:
    with serve({"Get": (unary(echo), EDIT)}) as server:
        failure = fails(server.unary(method), text(), metadata=(("x-request-id", "order-4711"),))

    assert dict(failure.trailing_metadata())[REQUEST_ID_KEY] == "order-4711"


def test_a_call_without_a_token_is_logged_with_reason_and_trace(logs: list[Any]) -> None:
    line = line_of(logs, echo, EDIT, metadata=(("x-request-id", "order-4711"),))

    assert (line["code"], line["reason"]) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
    assert (line["trace_id"], line["peer"][:5]) == ("order-4711", "ipv4:")


def lines_of_failures(policy: Policy, logs: list[Any]) -> int:
    with serve({"Get": (unary(missing_flag), policy)}) as server:
        codes = {fails(server.unary("Get"), text()).code() for _ in range(FAILURES)}
    assert codes == {grpc.StatusCode.NOT_FOUND}
    return sum(line["event"] == "rpc" for line in logs)


def test_evaluations_that_fail_again_and_again_get_some_lines(logs: list[Any]) -> None:
    assert lines_of_failures(QUIET, logs) == LINES_A_MINUTE


def test_other_calls_get_a_line_each(logs: list[Any]) -> None:
    assert lines_of_failures(OPEN, logs) == FAILURES


def test_how_many_got_no_line_is_told_once_the_minute_has_ended(
    logs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_samples, "MINUTE_S", 0.0)
    samples = LineSamples()
    sample = line_samples.Sample("/test.v1.TestService/Get", "NOT_FOUND", "192.0.2.7")
    assert [samples.admits(sample) for _ in range(FAILURES)].count(True) == LINES_A_MINUTE

    log_left_out(samples)
    log_left_out(samples)

    assert logs == [
        {
            "event": "rpc_left_out",
            "log_level": "info",
            "count": 5,
            "method": "/test.v1.TestService/Get",
            "code": "NOT_FOUND",
            "peer": "192.0.2.7",
        }
    ]
