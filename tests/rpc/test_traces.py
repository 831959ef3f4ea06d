"""Traces as a receiver of OTLP gets them: what is in the trace of a call, what never is, and who pays for it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import grpc
import pytest
import structlog
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.config.settings import SettingsError
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.instrumentation.counters import SPANS_DROPPED, SPANS_SENT
from gatekeeper_grpc.instrumentation.spans import TRACES
from gatekeeper_grpc.interceptors.tracing import REQUEST_ID_KEY
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.operations import otlp, traces
from gatekeeper_grpc.operations.logs import add_call_id
from tests.support.clients import TIMEOUT_S
from tests.support.databases import new_database
from tests.support.otlp import ReceivedSpan, Receiver, receiving
from tests.support.ports import free_port
from tests.support.servers import KEYS, connect, settings_for_tests, token_for
from tests.support.stages import OPEN, fails, serve, text, unary
from tests.support.waiting import eventually
from tests.support.watching import watching

ENDPOINT, HEADERS = "otel_exporter_otlp_endpoint", "otel_exporter_otlp_headers"
WITH_PASSWORD = "http://user:word@collector:4317"  # pragma: allowlist secret
RATIO = "otel_traces_sampler_arg"
ALL_DEFAULT: Mapping[str, object] = MappingProxyType({})
EVERY_CALL: Mapping[str, object] = MappingProxyType({RATIO: 1.0})
UPDATE = "gatekeeper.v1.AdminService/UpdateFlag"
EVALUATE = "gatekeeper.v1.EvaluationService/EvaluateFlags"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
SAMPLED = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
NOT_SAMPLED = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00"),)


class Traced:
    """A server on a database of its own, whose traces go to a receiver, and its clients."""

    def __init__(self, server: GatekeeperServer, dsn: str, stack: ExitStack) -> None:
        self.server = server
        self.channel = stack.enter_context(connect(server))
        self.admin = AdminServiceStub(stack.enter_context(connect(server, token=token_for(dsn, Role.EDITOR))))
        self.evaluation = EvaluationServiceStub(self.channel)
        self.admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key="checkout", enabled=True)), timeout=TIMEOUT_S)

    def update(self, percentage: int, metadata: Any = SAMPLED, **fields: Any) -> grpc.Call:
        flag = Flag(key="checkout", rollout_percentage=percentage)
        request = pb.UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["rollout_percentage"]), **fields)
        _, call = self.admin.UpdateFlag.with_call(request, timeout=TIMEOUT_S, metadata=metadata)
        return call

    def evaluate(self, *flag_keys: str, user_id: str = "anna", metadata: Any = SAMPLED) -> grpc.Call:
        request = EvaluateFlagsRequest(context=EvaluationContext(user_id=user_id), flag_keys=flag_keys)
        _, call = self.evaluation.EvaluateFlags.with_call(request, timeout=TIMEOUT_S, metadata=metadata)
        return call


@contextmanager
def traced(postgres: str, endpoint: str, settings: Mapping[str, object] = ALL_DEFAULT) -> Iterator[Traced]:
    with ExitStack() as stack:
        dsn = stack.enter_context(new_database(postgres))
        given = {ENDPOINT: endpoint, RATIO: 0.0, "refresh_interval_s": 0.1, **settings}
        server = GatekeeperServer(settings_for_tests(**given), dsn=dsn, keys=KEYS)
        server.start()
        stack.callback(server.stop)
        yield Traced(server, dsn, stack)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def house(postgres: str, receiver: Receiver) -> Iterator[Traced]:
    """Without a `traceparent` that asks for it, nothing is traced."""
    with traced(postgres, receiver.endpoint) as house:
        yield house


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs([add_call_id]) as lines:
        yield lines


def within(receiver: Receiver, span: ReceivedSpan) -> set[str]:
    """The paths of all spans within a span, by their names."""
    inner = receiver.spans(parent_id=span.span_id)
    return {each.name for each in inner} | {f"{each.name}/{path}" for each in inner for path in within(receiver, each)}


# --- The trace of a change -------------------------------------------------------------------------------------------


def test_one_trace_has_all_that_an_update_of_a_flag_does(house: Traced, receiver: Receiver) -> None:
    with watching(house.channel) as watch:
        watch.read()
        house.update(10, request_id=str(uuid4()))
        watch.read_changes()
        receiver.one("watch")

    update = receiver.one(UPDATE)
    receiver.one("refresh")  # What lies within a span comes before it.
    assert within(receiver, update) == {
        "transaction",
        "transaction/SELECT",  # of set_config: the limits of the call
        "transaction/SELECT revision_head",
        "transaction/SELECT admin_user",
        "transaction/SELECT idempotency_keys",
        "transaction/SELECT feature_flags",
        "transaction/UPDATE feature_flags",
        "transaction/INSERT change_log",
        "transaction/INSERT idempotency_keys",
        "transaction/COMMIT",
        "refresh",
        "refresh/transaction",
        "refresh/transaction/SELECT",
        "refresh/transaction/SELECT revision_head",
        "refresh/transaction/SELECT audit_log",
        "refresh/transaction/SELECT change_log",
        "refresh/transaction/SELECT feature_flags",
        "watch",
    }
    assert {span.trace_id for span in receiver.spans()} == {TRACE_ID}
    assert update.parent_id == PARENT_ID


def test_what_is_done_within_a_span_lies_within_its_time(house: Traced, receiver: Receiver) -> None:
    house.update(10)

    update = receiver.one(UPDATE)
    transaction = receiver.one("transaction", parent_id=update.span_id)
    statements = receiver.spans(parent_id=transaction.span_id)
    assert update.began_at < transaction.began_at < statements[0].began_at
    assert all(span.began_at < span.ended_at <= transaction.ended_at for span in statements)
    assert transaction.ended_at < update.ended_at
    assert transaction.attributes["gatekeeper.connection_wait_s"] >= 0


def test_changes_that_one_refresh_shows_are_linked_to_it(house: Traced, receiver: Receiver) -> None:
    other = f"00-{TRACE_ID[::-1]}-{PARENT_ID}-01"
    head = "SELECT revision FROM revision_head FOR UPDATE"
    with house.server.database.write() as conn:  # Both wait, and are committed one right after the other.
        conn.execute(head)
        calls = [
            house.admin.CreateFlag.future(pb.CreateFlagRequest(flag=Flag(key=key)), metadata=(("traceparent", parent),))
            for key, parent in (("one", SAMPLED[0][1]), ("two", other))
        ]
        assert eventually(lambda: house.server.database.connections()["used"] >= 3)
    for call in calls:
        call.result(TIMEOUT_S)

    creates = "gatekeeper.v1.AdminService/CreateFlag"
    assert eventually(lambda: len(receiver.spans(name=creates)) == 2)
    made = {(span.trace_id, span.span_id) for span in receiver.spans(name=creates)}

    def shown() -> set[tuple[str, str]]:
        refreshes = receiver.spans(name="refresh")
        return {(span.trace_id, span.parent_id) for span in refreshes} | {
            link for span in refreshes for link in span.links
        }

    assert eventually(lambda: shown() >= made)


def test_a_change_that_fails_causes_no_refresh(house: Traced, receiver: Receiver) -> None:
    with pytest.raises(grpc.RpcError, match="nothing"):
        house.admin.DeleteFlag(pb.DeleteFlagRequest(key="nothing"), metadata=SAMPLED, timeout=TIMEOUT_S)
    house.update(10, metadata=())
    house.evaluate()

    receiver.one(EVALUATE)
    failed = receiver.one("gatekeeper.v1.AdminService/DeleteFlag")
    assert "COMMIT" not in {path.rpartition("/")[2] for path in within(receiver, failed)}
    assert receiver.spans(name="refresh") == []
    assert failed.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert not failed.is_error, "its client is the cause"


def test_a_statement_that_fails_is_an_error_with_its_sqlstate(house: Traced, receiver: Receiver) -> None:
    with house.server.database.write() as conn:
        conn.execute("LOCK TABLE feature_flags IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(grpc.RpcError):
            house.admin.GetFlag(pb.GetFlagRequest(key="checkout"), metadata=SAMPLED, timeout=TIMEOUT_S)

    statement = receiver.one("SELECT feature_flags")
    assert statement.is_error
    assert statement.attributes == {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.collection.name": "feature_flags",
        "db.response.status_code": "55P03",
        "error.type": "55P03",
    }
    assert receiver.one("transaction", span_id=statement.parent_id).is_error
    assert receiver.one("gatekeeper.v1.AdminService/GetFlag").attributes["gatekeeper.reason"] == "DATABASE_LOCKED"


# --- The trace of an evaluation --------------------------------------------------------------------------------------


def test_an_evaluation_follows_the_conventions(house: Traced, receiver: Receiver) -> None:
    call = house.evaluate("checkout")

    span = receiver.one(EVALUATE)
    ((event, evaluation),) = span.events
    revision = span.attributes["gatekeeper.revision"]
    assert (span.kind, span.parent_id, span.trace_id) == ("SERVER", PARENT_ID, TRACE_ID)
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": EVALUATE,
        "rpc.response.status_code": "OK",
        "gatekeeper.call_id": dict(call.trailing_metadata())["x-gatekeeper-call-id"],
        "gatekeeper.flags": 1,
        "gatekeeper.revision": revision,
    }
    assert event == "feature_flag.evaluation"
    assert evaluation == {
        "feature_flag.key": "checkout",
        "feature_flag.provider.name": "gatekeeper",
        "feature_flag.result.variant": "off",
        "feature_flag.result.value": False,
        "feature_flag.result.reason": "static",
        "feature_flag.version": str(revision),
    }
    assert span.resource["service.name"] == "gatekeeper"


def test_of_many_flags_twenty_are_named(house: Traced, receiver: Receiver) -> None:
    for number in range(24):
        house.admin.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=f"flag-{number}")), timeout=TIMEOUT_S)

    house.evaluate()

    span = receiver.one(EVALUATE)
    assert (len(span.events), span.attributes["gatekeeper.flags"]) == (20, 25)


def test_no_span_holds_a_secret_a_user_or_a_value(house: Traced, receiver: Receiver) -> None:
    house.update(37, change_reason="canary-reason")
    house.admin.AddTargets(
        pb.AddTargetsRequest(flag_key="checkout", user_ids=["canary-user"], value=True),
        metadata=(*SAMPLED, ("x-odd", "canary-metadata")),
        timeout=TIMEOUT_S,
    )
    house.evaluate("checkout", user_id="canary-user")

    receiver.one(EVALUATE)
    assert b"SELECT feature_flags" in receiver.raw, "the control"
    assert re.findall(rb"canary[\w-]*|Bearer|127\.0\.0\.1|%\(\w+\)", receiver.raw) == []


def test_a_stream_is_a_span_from_its_begin_to_its_end(house: Traced, receiver: Receiver) -> None:
    watch_flags = "gatekeeper.v1.EvaluationService/WatchFlags"
    with watching(house.channel, metadata=SAMPLED) as watch:
        watch.read()
        assert receiver.spans(name=watch_flags) == []

    span = receiver.one(watch_flags)
    assert (span.trace_id, span.attributes["rpc.response.status_code"]) == (TRACE_ID, "CANCELLED")


def test_a_fault_of_the_server_is_an_error_of_its_span(receiver: Receiver, house: Traced) -> None:
    with serve({"Get": (unary(breaks), OPEN)}) as server:
        fails(server.unary("Get"), text(), metadata=SAMPLED)

    span = receiver.one("test.v1.TestService/Get")
    assert (span.is_error, span.attributes["error.type"]) == (True, "INTERNAL")


def breaks(_request: Any, _context: Any) -> Any:
    raise ZeroDivisionError


# --- Which calls are traced ------------------------------------------------------------------------------------------


def test_a_client_that_is_not_in_its_sample_is_in_none_here(postgres: str, receiver: Receiver) -> None:
    with traced(postgres, receiver.endpoint, EVERY_CALL) as house:
        house.evaluate(metadata=NOT_SAMPLED)
        house.evaluate(metadata=())

        assert receiver.one(EVALUATE).trace_id != TRACE_ID


def test_polls_and_background_tasks_leave_no_trace(postgres: str, receiver: Receiver) -> None:
    with traced(postgres, receiver.endpoint, EVERY_CALL) as house:
        read_at = house.server.cache.unconfirmed_s
        assert eventually(lambda: read_at() < 0.05)
        house.evaluate(metadata=())
        receiver.one(EVALUATE)

        roots = {span.name for span in receiver.spans(parent_id="")}
        assert roots <= {EVALUATE, "gatekeeper.v1.AdminService/CreateFlag"}


def test_a_refresh_for_no_traced_call_has_a_trace_of_its_own(postgres: str, receiver: Receiver) -> None:
    with traced(postgres, receiver.endpoint, EVERY_CALL) as house:
        house.update(10, metadata=NOT_SAMPLED)

        assert eventually(lambda: receiver.spans(name="refresh", parent_id=""))


# --- The ids of a call -----------------------------------------------------------------------------------------------


def line_of(logs: list[Any], method: str) -> dict[str, Any]:
    assert eventually(lambda: [line for line in logs if line.get("method") == f"/{method}"])
    return dict(next(line for line in logs if line.get("method") == f"/{method}"))


def test_log_and_trace_of_a_call_have_one_id(house: Traced, receiver: Receiver, logs: list[Any]) -> None:
    house.update(10)

    assert line_of(logs, UPDATE)["trace_id"] == receiver.one(UPDATE).trace_id == TRACE_ID


def test_a_traced_call_keeps_the_name_that_its_client_gave_it(
    postgres: str, receiver: Receiver, logs: list[Any]
) -> None:
    with traced(postgres, receiver.endpoint, EVERY_CALL) as house:
        call = house.update(10, metadata=((REQUEST_ID_KEY, "order-4711"),))

        line = line_of(logs, UPDATE)
        assert (line["trace_id"], line["request_id"]) == (receiver.one(UPDATE).trace_id, "order-4711")
        assert dict(call.trailing_metadata())[REQUEST_ID_KEY] == "order-4711"


def test_a_traced_call_that_its_client_did_not_name_tells_its_id(postgres: str, receiver: Receiver) -> None:
    with traced(postgres, receiver.endpoint, EVERY_CALL) as house:
        call = house.evaluate(metadata=())

        assert dict(call.trailing_metadata())[REQUEST_ID_KEY] == receiver.one(EVALUATE).trace_id


# --- The receiver ----------------------------------------------------------------------------------------------------


def test_the_receiver_gets_the_headers_that_it_asks_for(postgres: str, receiver: Receiver) -> None:
    with traced(postgres, receiver.endpoint, {HEADERS: "x-api-key=canary-key,x-team=flags"}) as house:
        house.evaluate()
        receiver.one(EVALUATE)

    assert (receiver.headers["x-api-key"], receiver.headers["x-team"]) == ("canary-key", "flags")


def test_a_receiver_that_is_away_fails_no_call_and_is_told_once(
    postgres: str, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    port = free_port()
    dropped, sent = SPANS_DROPPED._value, SPANS_SENT._value
    before = dropped.get(), sent.get()
    with ExitStack() as receivers, traced(postgres, f"http://127.0.0.1:{port}") as house:
        assert house.update(10).code() is grpc.StatusCode.OK
        assert eventually(lambda: dropped.get() > before[0])
        house.evaluate()
        receiver = receivers.enter_context(receiving(port=port))
        assert eventually(lambda: _evaluated_until(house, lambda: sent.get() > before[1]))
        assert receiver.spans()

    told = [line["event"] for line in logs if line["event"].startswith("traces_")]
    assert told == ["traces_not_sent", "traces_sent_again"]
    assert all("127.0.0.1" in line["error"] for line in logs if line["event"] == "traces_not_sent")


def _evaluated_until(house: Traced, is_enough: Callable[[], bool]) -> bool:
    house.evaluate()
    return is_enough()


def test_spans_that_find_no_room_are_dropped_and_counted(
    postgres: str, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    monkeypatch.setattr(otlp, "_MAX_QUEUED", 1)
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    before = SPANS_DROPPED._value.get()
    with traced(postgres, receiver.endpoint) as house:
        house.update(10)

        assert eventually(lambda: SPANS_DROPPED._value.get() > before)


def test_what_was_traced_last_is_sent_before_the_end(
    postgres: str, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with traced(postgres, receiver.endpoint) as house:
        house.evaluate()
        assert receiver.spans() == []

    assert [span.name for span in receiver.spans()] == [EVALUATE]
    assert TRACES.sink is None


def test_a_receiver_that_is_away_does_not_hold_up_the_end(postgres: str) -> None:
    with traced(postgres, f"http://127.0.0.1:{free_port()}") as house:
        house.evaluate()
        ended_at = time.monotonic()
    assert time.monotonic() - ended_at < 8, "the exporter would try for 10 s"

    assert TRACES.sink is None


# --- Without an endpoint ---------------------------------------------------------------------------------------------

_LOADED = """
import sys
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from tests.support.servers import KEYS, settings_for_tests
GatekeeperServer(settings_for_tests(), dsn="postgresql://nowhere", keys=KEYS)
print([name for name in sys.modules if "opentelemetry" in name])
"""


def loaded(**environment: str) -> str:
    """The modules of OpenTelemetry that a server loads."""
    command, variables = [sys.executable, "-c", _LOADED], {**os.environ, **environment}
    return subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout.strip()


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    assert loaded() == "[]"


def test_twin_with_an_endpoint_it_is_loaded() -> None:
    assert "opentelemetry.sdk.trace" in loaded(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")


# --- Settings --------------------------------------------------------------------------------------------------------


def test_traces_without_their_packages_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_EXPORTER", "no-such-package")
    settings = settings_for_tests(**{ENDPOINT: "http://127.0.0.1:4317"})

    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT: .* pip install 'gatekeeper-grpc\[otel\]'"):
        traces.check_traces(settings)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({ENDPOINT: "collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be http://host:port"),
        ({ENDPOINT: WITH_PASSWORD}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be http://host:port"),
        ({"otel_exporter_otlp_protocol": "http/protobuf"}, "OTEL_EXPORTER_OTLP_PROTOCOL: must be grpc"),
        ({RATIO: "2"}, "OTEL_TRACES_SAMPLER_ARG: '2' must be a number of 0 or more, at most 1"),
    ],
    ids=["no scheme", "a password", "HTTP", "ratio"],
)
def test_a_setting_of_traces_that_cannot_be_is_refused(given: dict[str, str], fault: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        settings_for_tests(**given)

    assert fault in str(refusal.value)
    assert "word" not in str(refusal.value)
