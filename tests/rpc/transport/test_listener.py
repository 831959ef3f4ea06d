"""Every option of the gRPC server has its effect: grpcio ignores options that it does not know."""

import socket
import struct
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct, Value

from gatekeeper.v1.evaluation_pb2 import EvaluationContext
from gatekeeper.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest
from gatekeeper.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport import listener
from gatekeeper_grpc.transport.listener import ListenError
from tests.support.clients import TIMEOUT_S
from tests.support.servers import StartServer


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

    with pytest.raises(ListenError, match=f"cannot listen on {address}: is another process using it?"):
        start_server(**{setting: address})


@without("grpc.so_reuseport")
def test_twin_with_the_default_two_servers_share_a_port_unnoticed(options: None, start_server: StartServer) -> None:
    first = start_server()

    assert start_server(listen=f"127.0.0.1:{first.port}").port == first.port


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

    assert [result.error.field for result in answer.results] == ["contexts[0].attributes"]


def test_a_message_above_8_mib_is_refused_before_it_is_buffered(evaluation: EvaluationServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(evaluation.BulkEvaluateFlags(iter([message_of((8 << 20) + 1)]), timeout=TIMEOUT_S))

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- What HTTP/2 itself shows ----------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
MAX_CONCURRENT_STREAMS = 3
ACK = 1
ENHANCE_YOUR_CALM = 11


class Http2:
    """A connection below grpcio, in frames of HTTP/2 (RFC 9113), for what grpcio clients cannot show or do."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.sendall(PREFACE)
        self.send(SETTINGS, b"")

    def send(self, kind: int, payload: bytes) -> None:
        """Send a frame of the connection."""
        self._connection.sendall(len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload)

    def receive(self, *kinds: int) -> tuple[int, int, bytes]:
        """Return type, flags and payload of the next frame of these types."""
        while True:
            header = self._read(9)
            payload = self._read(int.from_bytes(header[:3], "big"))
            if header[3] in kinds:
                return header[3], header[4], payload

    def _read(self, size: int) -> bytes:
        read = self._connection.recv(size, socket.MSG_WAITALL)
        assert len(read) == size, "the server has closed the connection"
        return read


@pytest.fixture
def http2(server: GatekeeperServer) -> Iterator[Http2]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        yield Http2(connection)


def announced_settings(http2: Http2) -> dict[int, int]:
    """The first frame of the server: its settings, by identifier."""
    _, _, payload = http2.receive(SETTINGS)
    return dict(struct.iter_unpack(">HI", payload))


def test_a_connection_may_have_100_streams(http2: Http2) -> None:
    assert announced_settings(http2)[MAX_CONCURRENT_STREAMS] == 100


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
