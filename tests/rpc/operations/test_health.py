"""gRPC health, on the main port and on its own: what this instance can do right now, and an answer when all is busy."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import BulkEvaluateFlagsRequest, EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.lifecycle import startup
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.operations.health import ADMIN, AUTH, EVALUATION
from gatekeeper_grpc.transport.admission import PoolName
from tests.support.clients import TIMEOUT_S
from tests.support.outages import outage
from tests.support.servers import KEYS, StartServer, connect, settings_for_tests, token_for
from tests.support.waiting import eventually

SERVICES = ["", EVALUATION, ADMIN, AUTH]
PORTS = ["port", "health_port"]

SERVING = dict.fromkeys(SERVICES, "SERVING")
NOT_SERVING = dict.fromkeys(SERVICES, "NOT_SERVING")
WITHOUT_DATABASE = {"": "SERVING", EVALUATION: "SERVING", ADMIN: "NOT_SERVING", AUTH: "NOT_SERVING"}

ANNA = EvaluationContext(user_id="anna")


@contextmanager
def health_stub(server: GatekeeperServer, port: str) -> Iterator[Any]:
    address = f"127.0.0.1:{getattr(server, port)}"
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def health(server: GatekeeperServer, port: str = "port") -> dict[str, str]:
    """What each service says of itself."""
    with health_stub(server, port) as stub:
        checks = {service: stub.Check(health_pb2.HealthCheckRequest(service=service)) for service in SERVICES}
    return {service: _name(answer) for service, answer in checks.items()}


def _name(answer: Any) -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@pytest.mark.parametrize("port", PORTS)
def test_everything_is_serving_while_all_is_well(port: str, server: GatekeeperServer) -> None:
    assert health(server, port) == SERVING


@pytest.mark.parametrize("port", PORTS)
def test_a_list_has_the_health_of_every_service(port: str, server: GatekeeperServer) -> None:
    with health_stub(server, port) as stub:
        listed = stub.List(health_pb2.HealthListRequest(), timeout=TIMEOUT_S)

    assert {service: _name(answer) for service, answer in listed.statuses.items()} == health(server, port)


@pytest.mark.parametrize("port", PORTS)
def test_a_service_nobody_knows_is_not_found(port: str, server: GatekeeperServer) -> None:
    with health_stub(server, port) as stub, pytest.raises(grpc.RpcError) as refused:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=TIMEOUT_S)

    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert AUTH in (refused.value.details() or "")


def test_losing_the_database_stops_admin_and_auth_alone_until_it_is_back(
    start_server: StartServer, dsn: str, postgres: str
) -> None:
    server = start_server(refresh_interval_s=0.05)
    with outage(postgres, dsn):
        assert eventually(lambda: health(server) != SERVING)
        assert {port: health(server, port) for port in PORTS} == dict.fromkeys(PORTS, WITHOUT_DATABASE)
    assert eventually(lambda: health(server) == SERVING)


def test_an_instance_started_without_a_database_recovers_by_itself(
    start_server: StartServer, dsn: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_FIRST_SNAPSHOT_TIMEOUT_S", 0.05)
    with outage(postgres, dsn):
        server = start_server(refresh_interval_s=0.05)
        assert health(server) == NOT_SERVING
    assert eventually(lambda: health(server) == SERVING)


@pytest.mark.parametrize("port", PORTS)
def test_a_drain_says_not_serving_to_checks_and_watches_while_calls_run(
    port: str, server: GatekeeperServer, evaluation: EvaluationServiceStub
) -> None:
    with health_stub(server, port) as stub:
        watched = stub.Watch(health_pb2.HealthCheckRequest(service=EVALUATION), timeout=TIMEOUT_S)
        seen = [_name(next(watched))]
        server.health.drain()
        seen.append(_name(next(watched)))
        watched.cancel()

    assert seen == ["SERVING", "NOT_SERVING"]
    assert health(server, port) == NOT_SERVING
    assert evaluation.EvaluateFlags(EvaluateFlagsRequest(context=ANNA), timeout=TIMEOUT_S).revision == 0


class Jam:
    """Keeps every worker of a server busy until it is left."""

    def __init__(self, server: GatekeeperServer, dsn: str) -> None:
        self._server = server
        self._dsn = dsn
        self._over = threading.Event()
        self._calls: list[Any] = []

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self._hang_up)
            anybody = stack.enter_context(connect(self._server))
            editor = stack.enter_context(connect(self._server, token=token_for(self._dsn, Role.EDITOR)))
            self._fill_evaluation(EvaluationServiceStub(anybody))
            self._fill_bulk(EvaluationServiceStub(anybody))
            self._fill_writes(AdminServiceStub(editor), stack)
            assert eventually(lambda: all(self._is_full(pool) for pool in FILLED))
            yield

    def _fill_evaluation(self, stub: EvaluationServiceStub) -> None:
        def at_least(revision: int, *, asked_as: str = "") -> Snapshot:
            self._over.wait(TIMEOUT_S)
            return self._server.cache.current()

        self._server.cache.at_least = at_least  # type: ignore[method-assign] # evaluation that never ends
        self._call(lambda: stub.EvaluateFlags.future(EvaluateFlagsRequest(context=ANNA)))

    def _fill_bulk(self, stub: EvaluationServiceStub) -> None:
        def one_message_then_silence() -> Iterator[BulkEvaluateFlagsRequest]:
            yield BulkEvaluateFlagsRequest(contexts=[ANNA])
            self._over.wait(TIMEOUT_S)

        self._call(lambda: stub.BulkEvaluateFlags(one_message_then_silence()))

    def _fill_writes(self, stub: AdminServiceStub, stack: ExitStack) -> None:
        holder = stack.enter_context(psycopg.connect(self._dsn))
        holder.execute("SELECT FROM revision_head FOR UPDATE")
        self._call(lambda: stub.CreateFlag.future(pb.CreateFlagRequest(flag=Flag(key="waits"))))

    def _call(self, call: Callable[[], Any]) -> None:
        self._calls += [call() for _ in range(WORKERS + 1)]

    def _is_full(self, pool: PoolName) -> bool:
        return self._server.pools[pool].is_saturated()

    def _hang_up(self) -> None:
        self._over.set()
        for call in self._calls:
            call.cancel()


WORKERS = 2
FILLED = (PoolName.EVALUATION, PoolName.BULK, PoolName.ADMIN_WRITE)


def test_health_answers_on_both_ports_while_every_other_worker_is_busy(start_server: StartServer, dsn: str) -> None:
    server = start_server(
        answer_at_once=False, evaluation_threads=WORKERS, stream_threads=WORKERS, admin_threads=WORKERS
    )
    with Jam(server, dsn).everywhere():
        assert {port: health(server, port) for port in PORTS} == dict.fromkeys(PORTS, SERVING)


def test_what_runs_before_serving_finds_the_snapshot_and_no_call(dsn: str) -> None:
    has_snapshot, calls = list[bool](), list[Any]()
    with ExitStack() as stack:

        def read() -> None:
            has_snapshot.append(server.cache.peek() is not None)
            stub = EvaluationServiceStub(stack.enter_context(connect(server)))
            calls.append(stub.EvaluateFlags.future(EvaluateFlagsRequest(context=ANNA), wait_for_ready=True))

        server = GatekeeperServer(settings_for_tests(), dsn=dsn, keys=KEYS, before_serving=read)
        stack.callback(server.stop)
        server.start()

        assert has_snapshot == [True]
        assert calls[0].result(TIMEOUT_S)
