"""Draining: idle clients disconnect, calls in progress end, and the server waits for no one else."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    EvaluateFlagsRequest,
    WatchFlagsRequest,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.transport.drain import Drain, QuietDrain
from gatekeeper_grpc.transport.goaway import connections
from tests.support.clients import TIMEOUT_S
from tests.support.floods import Blocking
from tests.support.http2 import DATA, HEADERS, Http2
from tests.support.servers import StartServer, connect
from tests.support.stages import OPEN, SERVICE, Server, serve, text, unary
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually

pytestmark = [pytest.mark.promise("C4"), pytest.mark.usefixtures("either_state")]

ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
CLIENTS = 4


def drain_of(server: GatekeeperServer) -> Drain:
    return server.drain


def test_all_idle_clients_disconnect(server: GatekeeperServer) -> None:
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            channel = stack.enter_context(connect(server))
            EvaluationServiceStub(channel).EvaluateFlags(ANNA, timeout=TIMEOUT_S)

        assert drain_of(server).run(server.servers, by=time.monotonic() + TIMEOUT_S) == 0


def test_a_draining_server_refuses_new_connections(server: GatekeeperServer) -> None:
    drain_of(server).run(server.servers, by=time.monotonic())

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)


def test_a_client_in_a_stream_gets_no_goaway_and_can_end_it(server: GatekeeperServer) -> None:
    requests: SimpleQueue[BulkEvaluateFlagsRequest | None] = SimpleQueue()
    with connect(server) as channel:
        answers = EvaluationServiceStub(channel).BulkEvaluateFlags(iter(requests.get, None), timeout=TIMEOUT_S)
        requests.put(BulkEvaluateFlagsRequest())
        next(answers)

        left = drain_of(server).run(server.servers, by=time.monotonic() + 0.1)
        requests.put(BulkEvaluateFlagsRequest(contexts=[ANNA.context]))
        requests.put(None)

        assert left == 1
        assert [result.user_id for answer in answers for result in answer.batch.results] == ["anna"]


def test_a_silent_connection_does_not_delay_the_stop(server: GatekeeperServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S):
        assert eventually(lambda: has_connections(server.port))
        before = time.monotonic()
        server.stop()

        assert time.monotonic() - before < TIMEOUT_S


def test_held_calls_are_served_after_the_release(server: GatekeeperServer, evaluation: EvaluationServiceStub) -> None:
    hold = server.pools.hold
    with hold.held():
        call = evaluation.EvaluateFlags.future(ANNA, timeout=TIMEOUT_S)
        assert eventually(lambda: bool(hold.pending()))
        assert not call.done()

    assert call.result().revision == 0


def has_connections(port: int) -> bool:
    return any(connections(port))


# --- With TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return CertificateFolder(tmp_path)


@pytest.fixture
def secure(start_server: StartServer, folder: CertificateFolder) -> GatekeeperServer:
    return start_server(**folder.settings, grace_s=TIMEOUT_S)


@contextmanager
def draining(server: Server) -> Iterator[None]:
    """Drain in the background; the block begins once new calls are held."""
    drain = QuietDrain(server.pools.hold)
    thread = threading.Thread(
        target=drain.run, args=({server.port: server.grpc_server},), kwargs={"by": time.monotonic() + TIMEOUT_S}
    )
    thread.start()
    assert eventually(lambda: server.pools.hold.is_holding)
    yield
    thread.join(TIMEOUT_S)


def code_of(call: Any) -> grpc.StatusCode:
    error = call.exception(TIMEOUT_S)
    assert error is not None
    code: grpc.StatusCode = error.code()
    return code


def code_at_end(stream: Any) -> grpc.StatusCode:
    with suppress(grpc.RpcError):
        list(stream)
    code: grpc.StatusCode = stream.code()
    return code


def test_with_tls_all_idle_clients_disconnect(secure: GatekeeperServer, folder: CertificateFolder) -> None:
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            channel = stack.enter_context(folder.channel(secure.port))
            EvaluationServiceStub(channel).EvaluateFlags(ANNA, timeout=TIMEOUT_S)

        assert drain_of(secure).run(secure.servers, by=time.monotonic() + TIMEOUT_S) == 0


def test_with_tls_a_call_in_progress_is_answered_and_a_held_one_never_runs(folder: CertificateFolder) -> None:
    blocking, ran = Blocking(), SimpleQueue[str]()

    def note(request: Any, _context: Any) -> Any:
        ran.put(request.value)
        return request

    methods = {"Block": (unary(blocking), OPEN), "Note": (unary(note), OPEN)}
    with serve(methods, certificates=folder) as server:
        first = server.unary("Block").future(text(), timeout=TIMEOUT_S)
        assert blocking.entered.acquire(timeout=TIMEOUT_S)
        with draining(server):
            second = server.unary("Note").future(text(), timeout=TIMEOUT_S)
            assert eventually(lambda: bool(server.pools.hold.pending()))
            blocking.released.set()

            assert first.result(TIMEOUT_S) == text()
            assert code_of(second) is grpc.StatusCode.UNAVAILABLE
        assert ran.empty()


def test_twin_without_the_drain_such_a_call_has_no_answer(folder: CertificateFolder) -> None:
    blocking = Blocking()
    with serve({"Block": (unary(blocking), OPEN)}, certificates=folder) as server:
        first = server.unary("Block").future(text(), timeout=TIMEOUT_S)
        assert blocking.entered.acquire(timeout=TIMEOUT_S)
        server.grpc_server.stop(0).wait(TIMEOUT_S)
        blocking.released.set()

        assert code_of(first) in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_with_tls_streams_end_with_unavailable(secure: GatekeeperServer, folder: CertificateFolder) -> None:
    requests: SimpleQueue[BulkEvaluateFlagsRequest | None] = SimpleQueue()
    with folder.channel(secure.port) as channel:
        stub = EvaluationServiceStub(channel)
        bulk: Any = stub.BulkEvaluateFlags(iter(requests.get, None), timeout=TIMEOUT_S)
        watch: Any = stub.WatchFlags(WatchFlagsRequest(), timeout=TIMEOUT_S)
        requests.put(BulkEvaluateFlagsRequest())
        next(bulk)
        next(watch)

        secure.stop()
        requests.put(None)

        assert [code_at_end(bulk), code_at_end(watch)] == [grpc.StatusCode.UNAVAILABLE] * 2


def test_with_tls_an_answer_that_is_not_read_yet_arrives_whole() -> None:
    """The client's window and buffers take all of it, and it has read nothing of it when the server has left."""
    ran = threading.Event()

    def echo(request: Any, _context: Any) -> Any:
        ran.set()
        return request

    with serve({"Echo": (unary(echo), OPEN)}) as server, Http2.connected(server.port) as client:
        client.send_message(client.open_call(f"/{SERVICE}/Echo"), text("x" * 10_000).SerializeToString())
        assert ran.wait(TIMEOUT_S)
        with draining(server):
            pass

        assert [client.receive(HEADERS, DATA)[0] for _ in range(3)] == [HEADERS, DATA, HEADERS]


def test_with_tls_a_handshake_that_does_not_end_does_not_delay_the_stop(
    secure: GatekeeperServer,
) -> None:
    with socket.create_connection(("127.0.0.1", secure.port), TIMEOUT_S):
        assert eventually(lambda: has_connections(secure.port))
        before = time.monotonic()
        secure.stop()

        assert time.monotonic() - before < TIMEOUT_S
