"""Every option of the gRPC server has its effect: grpcio ignores options that it does not know."""

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct, Value

from gatekeeper_client.v1 import auth_service_pb2
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceServicer, add_AuthServiceServicer_to_server
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport import listener
from gatekeeper_grpc.transport.listener import ListenError
from gatekeeper_grpc.transport.receive_slots import ReceiveSlots
from tests.support.clients import TIMEOUT_S
from tests.support.http2 import ACK, GOAWAY, PING, SETTINGS, Http2
from tests.support.servers import StartServer
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Leaves some options at grpcio's default."""
    kept = tuple(option for option in listener.OPTIONS if option[0] not in request.param)
    assert len(kept) == len(listener.OPTIONS) - len(request.param)
    monkeypatch.setattr(listener, "OPTIONS", kept)


def without(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("options", [names], indirect=True, ids=["without"])


@pytest.mark.parametrize("setting", ["listen", "health_listen"])
def test_a_port_that_is_taken_is_refused_by_its_address(
    setting: str, server: GatekeeperServer, start_server: StartServer
) -> None:
    address = f"127.0.0.1:{server.port}"

    with pytest.raises(ListenError, match=f"cannot listen on {address}: another process listens there"):
        start_server(**{setting: address})


@without("grpc.so_reuseport")
def test_twin_with_the_default_two_servers_share_a_port_unnoticed(options: None, start_server: StartServer) -> None:
    first = start_server()

    assert start_server(listen=f"127.0.0.1:{first.port}").port == first.port


def test_a_service_is_added_with_each_method_registered_by_name() -> None:
    registered: dict[str, dict[str, object]] = {}

    class Registers:
        def add_registered_method_handlers(self, service: str, handlers: dict[str, object]) -> None:
            registered[service] = handlers

    service = auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"]
    server = listener.queued_by_method(cast("grpc.Server", Registers()), service)
    add_AuthServiceServicer_to_server(cast("type[Any]", AuthServiceServicer)(), server)

    ((name, handlers),) = registered.items()
    assert (name, {*handlers}) == ("gatekeeper.v1.AuthService", {"Login", "RefreshToken", "Logout"})
    assert None not in handlers.values()


def message_of(size: int) -> BulkEvaluateFlagsRequest:
    """A bulk message of exactly `size` bytes; its only context is invalid, which its result says."""
    message = BulkEvaluateFlagsRequest(flag_keys=["unknown"], contexts=[EvaluationContext(user_id="anna")])
    message.contexts[0].attributes.CopyFrom(Struct(fields={"pad": Value(string_value="x")}))
    while message.ByteSize() != size:
        pad = message.contexts[0].attributes.fields["pad"]
        pad.string_value = "x" * (len(pad.string_value) + size - message.ByteSize())
    return message


def test_a_message_of_4_mib_is_accepted(evaluation: EvaluationServiceStub) -> None:
    _, answer = evaluation.BulkEvaluateFlags(iter([message_of(4 << 20)]), timeout=TIMEOUT_S)

    assert [result.error.field for result in answer.batch.results] == ["contexts[0].attributes"]


def refusal_of(size: int, evaluation: EvaluationServiceStub) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        list(evaluation.BulkEvaluateFlags(iter([message_of(size)]), timeout=TIMEOUT_S))
    return refused.value.code(), refused.value.details() or ""


def test_a_message_of_more_than_4_mib_is_invalid(evaluation: EvaluationServiceStub) -> None:
    code, details = refusal_of((4 << 20) + 1, evaluation)

    assert (code, details) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "request must be at most 4194304 bytes long, not 4194305",
    )


def test_a_message_beyond_what_is_received_is_refused_at_its_head(evaluation: EvaluationServiceStub) -> None:
    """grpcio refuses it without an ErrorInfo, and names both sizes."""
    code, details = refusal_of(listener.MAX_RECEIVED_BYTES + 1, evaluation)

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"{listener.MAX_RECEIVED_BYTES + 1} vs. {listener.MAX_RECEIVED_BYTES}" in details


@without("grpc.max_receive_message_length")
def test_twin_by_default_grpcio_refuses_it_without_a_reason(options: None, evaluation: EvaluationServiceStub) -> None:
    assert refusal_of((4 << 20) + 1, evaluation)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- What HTTP/2 itself shows ----------------------------------------------------------------------------------------

EVALUATE = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
MAX_CONCURRENT_STREAMS = 3
ENHANCE_YOUR_CALM = 11


@pytest.fixture(params=["plaintext", "tls"])
def certificates(request: pytest.FixtureRequest, tmp_path: Path) -> CertificateFolder | None:
    return CertificateFolder(tmp_path) if request.param == "tls" else None


@pytest.fixture
def seen(start_server: StartServer, certificates: CertificateFolder | None) -> GatekeeperServer:
    """A server in plaintext, and one with TLS."""
    return start_server(**(certificates.settings if certificates else {}))


@pytest.fixture
def http2(seen: GatekeeperServer, certificates: CertificateFolder | None) -> Iterator[Http2]:
    with Http2.connected(seen.port, certificates=certificates) as connection:
        yield connection


def announced_settings(http2: Http2) -> dict[int, int]:
    """The first frame of the server: its settings, by identifier."""
    _, _, payload = http2.receive(SETTINGS)
    return dict(struct.iter_unpack(">HI", payload))


def test_a_connection_may_have_100_streams(http2: Http2) -> None:
    assert announced_settings(http2)[MAX_CONCURRENT_STREAMS] == 100


@pytest.fixture
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets what is being received make no way for what waits: nobody asks for that."""
    monkeypatch.setattr(ReceiveSlots, "overdue", lambda _slots: [])


def accepted_unasked(http2: Http2, seen: GatekeeperServer) -> int:
    """Occupy every slot of one address; then return how much of one message more the server takes."""
    http2.read_for(0.5)
    slots = seen.pools.pending.strangers.limits.receiving
    for _ in range(slots):
        http2.announce(http2.open_call(EVALUATE), 4 << 20)
    stream = http2.open_call(EVALUATE)
    http2.announce(stream, 4 << 20)
    assert eventually(lambda: len(seen.pools.pending.strangers) > slots // 2)
    sent = 0
    for _ in range(10):
        sent += http2.fill(stream, 4 << 20)
        http2.read_for(0.02)
    return sent


@pytest.mark.usefixtures("no_turns")
def test_a_client_sends_at_most_16_kib_of_what_nobody_asked_for(http2: Http2, seen: GatekeeperServer) -> None:
    assert accepted_unasked(http2, seen) <= listener.LOOKAHEAD_BYTES == 5_120


@pytest.mark.usefixtures("no_turns")
@pytest.mark.parametrize("options", [["grpc.http2.lookahead_bytes"], ["grpc.http2.bdp_probe"]], indirect=True, ids=str)
def test_twin_with_either_default_it_sends_more(options: None, http2: Http2, seen: GatekeeperServer) -> None:
    assert accepted_unasked(http2, seen) > listener.LOOKAHEAD_BYTES


@without("grpc.max_concurrent_streams")
def test_twin_with_the_default_it_may_have_any_number(options: None, http2: Http2) -> None:
    assert announced_settings(http2).get(MAX_CONCURRENT_STREAMS, 2**32) > 2**30


def answers_to_pings(http2: Http2) -> list[int]:
    """Send 50 pings, one at a time; return the answers: zeros, or the error code of GOAWAY."""
    answers: list[int] = []
    while len(answers) < 50 and not any(answers):
        http2.send(PING, bytes(8))
        kind, flags, payload = http2.receive(PING, GOAWAY)
        answers.append(0 if (kind, flags) == (PING, ACK) else int.from_bytes(payload[4:8], "big"))
    return answers


def test_a_client_may_ping_as_often_as_it_likes(http2: Http2) -> None:
    assert answers_to_pings(http2) == [0] * 50


@without("grpc.http2.max_ping_strikes", "grpc.http2.min_recv_ping_interval_without_data_ms")
def test_twin_with_the_default_policy_the_server_disconnects(options: None, http2: Http2) -> None:
    assert answers_to_pings(http2)[-1] == ENHANCE_YOUR_CALM


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Gives a time limit half a second: the name of an option must be right for that to have an effect."""
    monkeypatch.setattr(listener, "OPTIONS", tuple((dict(listener.OPTIONS) | {request.param: 500}).items()))


@pytest.mark.parametrize("brisk", ["grpc.max_connection_idle_ms"], indirect=True)
def test_a_client_without_a_call_is_sent_away(brisk: None, http2: Http2) -> None:
    kind, _, _ = http2.receive(GOAWAY)

    assert kind == GOAWAY


@pytest.mark.parametrize("brisk", ["grpc.server_handshake_timeout_ms"], indirect=True)
def test_a_connection_that_says_nothing_is_closed(brisk: None, seen: GatekeeperServer) -> None:
    with socket.create_connection(("127.0.0.1", seen.port), timeout=TIMEOUT_S) as silent:
        while silent.recv(1_024):  # The server's own settings come first.
            continue


@pytest.mark.parametrize("brisk", ["grpc.keepalive_time_ms"], indirect=True)
def test_a_client_that_sends_nothing_is_asked_whether_it_is_there(brisk: None, http2: Http2) -> None:
    kind, flags, _ = http2.receive(PING)

    assert (kind, flags & ACK) == (PING, 0)
