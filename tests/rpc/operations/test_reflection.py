"""Server reflection: the contract with its comments, the details of errors, on both ports, without harm to health."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_database import DescriptorDatabase
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.interceptors import chain
from gatekeeper_grpc.interceptors.policy import POLICIES
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.operations.health import HealthReporter
from gatekeeper_grpc.operations.health_server import MAX_REFLECTION_STREAMS, HealthServer
from gatekeeper_grpc.operations.readiness import Readiness
from gatekeeper_grpc.transport.admission import PoolName
from tests.support.clients import TIMEOUT_S
from tests.support.servers import StartServer
from tests.support.waiting import eventually

VERSIONS = ["v1", "v1alpha"]
Request = reflection_pb2.ServerReflectionRequest


@contextmanager
def channel_to(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def reflect(channel: grpc.Channel, requests: Iterator[Any], version: str = "v1") -> Any:
    method: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=Request.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return method(requests, timeout=TIMEOUT_S)


def ask(port: int, version: str = "v1", **question: str) -> Any:
    with channel_to(port) as channel:
        (answer,) = reflect(channel, iter([Request(**question)]), version)
    return answer


def files(answer: Any) -> dict[str, FileDescriptorProto]:
    protos = map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
    return {proto.name: proto for proto in protos}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_listed_service_is_described_by_whole_files(server: GatekeeperServer, version: str) -> None:
    names = [service.name for service in ask(server.port, version, list_services="").list_services_response.service]
    assert names == [
        *(f"gatekeeper.v1.{name}Service" for name in ("Admin", "Auth", "Evaluation")),
        *("grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"),
    ]

    for name in names:
        database = DescriptorDatabase()
        for proto in files(ask(server.port, version, file_containing_symbol=name)).values():
            database.Add(proto)
        assert DescriptorPool(database).FindServiceByName(name).methods


def test_the_comments_of_the_protos_are_there(server: GatekeeperServer) -> None:
    answer = files(ask(server.port, file_containing_symbol="gatekeeper.v1.EvaluationService.EvaluateFlags"))

    comments = [
        location.leading_comments
        for location in answer["gatekeeper/v1/evaluation_service.proto"].source_code_info.location
    ]
    assert any(comment.startswith(" Evaluates flags for one user.") for comment in comments)


@pytest.mark.parametrize("symbol", ["google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo"])
def test_the_details_of_errors_can_be_decoded(server: GatekeeperServer, symbol: str) -> None:
    assert "google/rpc/error_details.proto" in files(ask(server.port, file_containing_symbol=symbol))


@pytest.mark.parametrize(
    ("question", "code"),
    [
        ({"file_containing_symbol": "gatekeeper.v1.Nothing"}, grpc.StatusCode.NOT_FOUND),
        ({"file_by_filename": "/etc/passwd"}, grpc.StatusCode.NOT_FOUND),
        ({"all_extension_numbers_of_type": "a.B"}, grpc.StatusCode.NOT_FOUND),
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=str,
)
def test_what_is_not_there_is_refused_in_the_stream(
    server: GatekeeperServer, question: dict[str, str], code: grpc.StatusCode
) -> None:
    assert ask(server.port, **question).error_response.error_code == code.value[0]


def test_without_reflection_neither_port_has_it(start_server: StartServer) -> None:
    server = start_server(reflection=False)

    for port in (server.port, server.health_port):
        with pytest.raises(grpc.RpcError) as refused:
            ask(port, list_services="")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- The health port --------------------------------------------------------------------------------------------------


def not_asked() -> Readiness:
    """The reporter asks after its start, which these tests do not need."""
    raise NotImplementedError


@contextmanager
def health_port() -> Iterator[int]:
    server = HealthServer(HealthReporter(not_asked))
    port = server.bind(ListenAddress(host="127.0.0.1"))
    server.start()
    try:
        yield port
    finally:
        server.stop()


class Besieged:
    """The health port with as many reflection streams as it takes, and many Watch streams that nobody reads."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        self.left = threading.Event()
        stack.callback(self.left.set)
        self.channel = stack.enter_context(channel_to(port))
        self.stub: Any = health_pb2_grpc.HealthStub(self.channel)
        self.watches = [self.stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(30)]
        self.reflections = [reflect(self.channel, self._requests()) for _ in range(MAX_REFLECTION_STREAMS)]

    def _requests(self) -> Iterator[Any]:
        yield Request(list_services="")
        self.left.wait(TIMEOUT_S)

    def check(self) -> int:
        status: int = self.stub.Check(health_pb2.HealthCheckRequest(), timeout=2).status
        return status


def test_health_describes_itself_on_its_port() -> None:
    with health_port() as port:
        names = [service.name for service in ask(port, list_services="").list_services_response.service]
        described = files(ask(port, file_containing_symbol="grpc.health.v1.Health"))

    assert names[0] == "grpc.health.v1.Health"
    assert any(proto.service for proto in described.values())


def test_a_check_never_waits_behind_watch_or_reflection() -> None:
    with ExitStack() as stack, health_port() as port:
        besieged = Besieged(stack, port)
        for stream in besieged.reflections:
            next(stream)

        assert [besieged.check() for _ in range(10)] == [health_pb2.HealthCheckResponse.SERVING] * 10
        with pytest.raises(grpc.RpcError) as refused:
            next(reflect(besieged.channel, iter([Request(list_services="")])))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_twin_reflection_on_the_workers_of_health_keeps_checks_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    row = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    monkeypatch.setattr(chain, "POLICIES", {**POLICIES, row: replace(POLICIES[row], pool=PoolName.OPERATIONS)})
    with ExitStack() as stack, health_port() as port:
        besieged = Besieged(stack, port)

        def is_kept_waiting() -> bool:
            try:
                besieged.check()
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return False

        assert eventually(is_kept_waiting)
