"""A listener of its own for AdminService and AuthService: who serves what, and that limits and drains cover both."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import psycopg
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2

from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest, GetFlagRequest
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.config.settings import load_settings
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.interceptors.chain import Stages
from gatekeeper_grpc.lifecycle.limits import Limits
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport.admission import PoolName
from gatekeeper_grpc.transport.goaway import connections
from tests.support.clients import TIMEOUT_S, Refusal, refusal_of
from tests.support.http2 import GOAWAY, Http2
from tests.support.servers import StartServer, token_for
from tests.support.tls import HOST, CertificateFolder, Issuer
from tests.support.waiting import eventually

OWN: dict[str, Any] = {"admin_listen": f"{HOST}:0"}
ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
NOBODY = LoginRequest(username="nobody", password="wrong")  # pragma: allowlist secret
EVALUATE = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
GET_FLAG = "/gatekeeper.v1.AdminService/GetFlag"
LOGIN = "/gatekeeper.v1.AuthService/Login"
LISTENERS = ["port", "admin_port"]


@pytest.fixture
def divided(start_server: StartServer) -> GatekeeperServer:
    """A server with two listeners."""
    return start_server(**OWN)


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return CertificateFolder(tmp_path)


def to(port: int) -> grpc.Channel:
    return grpc.insecure_channel(f"{HOST}:{port}", options=[("grpc.use_local_subchannel_pool", 1)])


def evaluate(channel: grpc.Channel) -> int:
    return EvaluationServiceStub(channel).EvaluateFlags(ANNA, timeout=TIMEOUT_S).revision


def login_code(channel: grpc.Channel) -> grpc.StatusCode:
    call = AuthServiceStub(channel).Login.future(NOBODY, timeout=TIMEOUT_S)
    code: grpc.StatusCode = call.code()
    return code


def call(channel: grpc.Channel, method: str) -> bytes:
    unary: Any = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    return bytes(unary(b"", timeout=TIMEOUT_S))


def services(port: int) -> list[str]:
    """What reflection lists."""
    with to(port) as channel:
        reflect: Any = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        (answer,) = reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=TIMEOUT_S)
    return [service.name.rpartition(".")[2] for service in answer.list_services_response.service]


def livez(server: GatekeeperServer) -> int:
    try:
        with urlopen(f"http://{HOST}:{server.ops_port}/livez", timeout=TIMEOUT_S) as answer:
            return int(answer.status)
    except HTTPError as refused:
        return refused.code


# --- Who serves what -------------------------------------------------------------------------------------------------


def test_each_listener_serves_its_own_services(divided: GatekeeperServer, dsn: str) -> None:
    token = token_for(dsn, Role.VIEWER)
    with to(divided.port) as first, to(divided.admin_port) as second:
        read = AdminServiceStub(second).GetFlag.future(
            GetFlagRequest(key="absent"), timeout=TIMEOUT_S, metadata=(("authorization", f"Bearer {token}"),)
        )

        assert evaluate(first) == 0
        assert (login_code(second), read.code()) == (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("port", "method", "listener"),
    [
        ("port", GET_FLAG, "GATEKEEPER_ADMIN_LISTEN"),
        ("port", LOGIN, "GATEKEEPER_ADMIN_LISTEN"),
        ("admin_port", EVALUATE, "GATEKEEPER_LISTEN"),
    ],
)
def test_a_method_of_the_other_listener_is_refused_and_names_that_listener(
    divided: GatekeeperServer, port: str, method: str, listener: str
) -> None:
    with to(getattr(divided, port)) as channel, pytest.raises(grpc.RpcError) as refused:
        call(channel, method)

    metadata = {"method": method, "nearest": method, "listener": listener}
    expected = Refusal(grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_FOUND", metadata)
    with to(getattr(divided, port)) as channel:
        assert refusal_of(lambda: call(channel, method)) == expected
    assert f"the listener of {listener} serves it" in str(refused.value.details())
    assert str(divided.admin_port) not in str(refused.value.details())  # Strangers are not shown where admins call.


def test_a_wrong_name_is_told_the_nearest_method_and_its_listener(divided: GatekeeperServer) -> None:
    with to(divided.port) as channel, pytest.raises(grpc.RpcError) as refused:
        call(channel, f"{GET_FLAG}s")

    expected = f"the nearest method is {GET_FLAG}, on the listener of GATEKEEPER_ADMIN_LISTEN"
    assert str(refused.value.details()).endswith(expected)


@pytest.mark.parametrize("port", LISTENERS)
def test_both_listeners_tell_the_health_of_the_instance(divided: GatekeeperServer, port: str) -> None:
    with to(getattr(divided, port)) as channel:
        answer = HealthStub(channel).Check(HealthCheckRequest(service="gatekeeper.v1.AdminService"), timeout=TIMEOUT_S)

    assert answer.status == HealthCheckResponse.SERVING


def test_reflection_of_a_listener_lists_what_it_serves(divided: GatekeeperServer) -> None:
    reflection = ["ServerReflection", "ServerReflection"]

    assert services(divided.port) == ["EvaluationService", "Health", *reflection]
    assert services(divided.admin_port) == ["AdminService", "AuthService", "Health", *reflection]


@pytest.mark.parametrize(
    ("settings", "reflecting"),
    [
        ({"reflection": False}, []),
        ({"reflection": False, "admin_reflection": True}, ["admin_port"]),
        ({"admin_reflection": False}, ["port"]),
    ],
)
def test_each_listener_has_reflection_by_setting(
    start_server: StartServer, settings: dict[str, bool], reflecting: list[str]
) -> None:
    server = start_server(**OWN, **settings)

    for name in LISTENERS:
        if name in reflecting:
            assert services(getattr(server, name))
            continue
        with pytest.raises(grpc.RpcError) as refused:
            services(getattr(server, name))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_without_the_setting_one_listener_serves_everything(server: GatekeeperServer) -> None:
    with to(server.port) as channel:
        assert (evaluate(channel), login_code(channel)) == (0, grpc.StatusCode.UNAUTHENTICATED)
    assert server.client_ports == {"port": server.port}


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", LISTENERS)
def test_both_listeners_ask_clients_for_a_certificate(
    start_server: StartServer, folder: CertificateFolder, tmp_path: Path, port: str
) -> None:
    clients, client_ca = Issuer("issuer of clients"), tmp_path / "clients.crt"
    client_ca.write_bytes(clients.pem)
    server = start_server(**OWN, **folder.settings, tls_client_ca_file=client_ca)
    ask: Callable[[grpc.Channel], grpc.StatusCode] = {"port": evaluation_code, "admin_port": login_code}[port]
    answered = {"port": grpc.StatusCode.OK, "admin_port": grpc.StatusCode.UNAUTHENTICATED}[port]

    outcomes = []
    for client in (clients.issue("ops"), Issuer().issue("ops"), None):
        with folder.channel(getattr(server, port), client) as channel:
            outcomes.append(ask(channel))
    with to(getattr(server, port)) as plain:
        outcomes.append(ask(plain))

    assert outcomes == [answered, *[grpc.StatusCode.UNAVAILABLE] * 3]


def evaluation_code(channel: grpc.Channel) -> grpc.StatusCode:
    code: grpc.StatusCode = EvaluationServiceStub(channel).EvaluateFlags.future(ANNA, timeout=TIMEOUT_S).code()
    return code


# --- Limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [256, 1_024, 100_000])
def test_both_listeners_share_the_connections_and_the_memory(files: int) -> None:
    one = Limits.of(load_settings(), open_files=files)
    two = Limits.of(load_settings(**OWN), open_files=files)
    assert two.admin_connections

    assert two.connections.most + two.admin_connections.most == two.max_connections == one.connections.most
    assert two.admin_connections.most == one.connections.most // 8
    assert two.clients_mib == one.clients_mib


def test_calls_without_a_message_count_together(divided: GatekeeperServer) -> None:
    with Http2.connected(divided.port) as first, Http2.connected(divided.admin_port) as second:
        for connection, method in ((first, EVALUATE), (second, LOGIN)) * 3:
            connection.open_call(method)

        assert eventually(lambda: len(divided.pools.pending.strangers) == 6)


def test_metrics_count_the_connections_of_both(divided: GatekeeperServer) -> None:
    with to(divided.port) as first, to(divided.admin_port) as second:
        evaluate(first)
        login_code(second)
        with urlopen(f"http://{HOST}:{divided.ops_port}/metrics", timeout=TIMEOUT_S) as answer:
            lines = answer.read().decode().splitlines()

    assert "gatekeeper_open_connections 2.0" in lines


# --- Liveness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", [GET_FLAG, EVALUATE], ids=["of evaluation", "of AdminService"])
def test_livez_fails_while_the_serving_thread_of_either_hangs(
    divided: GatekeeperServer, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """The listener that lacks the method is the one that hangs."""
    over, intercept = threading.Event(), Stages.intercept_service

    def hang(stages: Stages, continuation: Any, details: Any) -> Any:
        if lacking in stages.elsewhere:
            over.wait(TIMEOUT_S)
        return intercept(stages, continuation, details)

    monkeypatch.setattr(Stages, "intercept_service", hang)
    hung = livez(divided)
    over.set()

    assert hung == 503
    assert eventually(lambda: livez(divided) == 200)


# --- Leaving ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clients(divided: GatekeeperServer) -> Iterator[tuple[Http2, Http2]]:
    """An idle client of each listener."""
    with Http2.connected(divided.port) as first, Http2.connected(divided.admin_port) as second:
        assert eventually(lambda: all(any(connections(port)) for port in divided.servers))
        yield first, second


@pytest.mark.promise("C4")
def test_clients_of_both_listeners_get_goaway(divided: GatekeeperServer, clients: tuple[Http2, Http2]) -> None:
    divided.drain.run(divided.servers, by=time.monotonic() + TIMEOUT_S)

    assert [client.receive(GOAWAY)[0] for client in clients] == [GOAWAY, GOAWAY]


@pytest.mark.usefixtures("clients")
def test_twin_a_drain_of_one_listener_leaves_the_clients_of_the_other(divided: GatekeeperServer) -> None:
    left = divided.drain.run({divided.port: divided.servers[divided.port]}, by=time.monotonic())

    assert left == 1
    with to(divided.admin_port) as channel:
        assert login_code(channel) is grpc.StatusCode.UNAUTHENTICATED
    assert any(connections(divided.admin_port))


@pytest.mark.promise("C4")
def test_with_tls_all_idle_clients_of_both_disconnect(start_server: StartServer, folder: CertificateFolder) -> None:
    server = start_server(**OWN, **folder.settings)
    with ExitStack() as stack:
        evaluate(stack.enter_context(folder.channel(server.port)))
        login_code(stack.enter_context(folder.channel(server.admin_port)))

        assert server.drain.run(server.servers, by=time.monotonic() + TIMEOUT_S) == 0


@pytest.mark.promise("C4")
@pytest.mark.parametrize("has_tls", [False, True], ids=["plaintext", "TLS"])
def test_calls_of_both_listeners_are_answered_during_a_drain(
    start_server: StartServer, folder: CertificateFolder, dsn: str, *, has_tls: bool
) -> None:
    server = start_server(**OWN, **(folder.settings if has_tls else {}), grace_s=TIMEOUT_S)
    token = token_for(dsn, Role.EDITOR)
    connect = folder.channel if has_tls else to
    stopping = threading.Thread(target=server.stop)
    with connect(server.port) as first, connect(server.admin_port) as second, psycopg.connect(dsn) as holder:
        holder.execute("SELECT FROM revision_head FOR UPDATE")
        evaluate(first)
        changing = AdminServiceStub(second).CreateFlag.future(
            CreateFlagRequest(flag=Flag(key="slow")),
            timeout=TIMEOUT_S,
            metadata=(("authorization", f"Bearer {token}"),),
        )
        assert eventually(lambda: server.pools[PoolName.ADMIN_WRITE].in_flight == 1)
        stopping.start()
        assert eventually(lambda: not any(connections(server.port)))
        holder.rollback()

        assert changing.result(TIMEOUT_S).revision == 1
        stopping.join(TIMEOUT_S)


@pytest.mark.promise("C4")
def test_with_tls_a_unix_socket_is_served_to_the_end(
    start_server: StartServer, folder: CertificateFolder, tmp_path: Path
) -> None:
    """Nobody ends its connections, so a call that was held there would have no answer."""
    target = f"unix:{tmp_path / 'admin.sock'}"
    server = start_server(admin_listen=target, **folder.settings)
    server.drain.run(server.servers, by=time.monotonic() + TIMEOUT_S)

    name: dict[str, Any] = {"grpc.ssl_target_name_override": "localhost"}
    with folder.channel(target=target, **name) as channel:
        assert login_code(channel) is grpc.StatusCode.UNAUTHENTICATED
