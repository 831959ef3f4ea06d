"""A server that may have 1,024 files open, and more idle connections than that."""

import json
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest

from gatekeeper_client.v1.admin_service_pb2 import GetFlagRequest
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from tests.faults.proxy import proxied
from tests.support.http2 import Http2
from tests.support.processes import TIMEOUT_S, Gatekeeper, connect, start, stop, with_files
from tests.support.tls import CertificateFolder
from tests.support.waiting import eventually

FILES = 1_024
ATTACKING = 1_200
VICTIMS = 20
ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))


@contextmanager
def serving_with_few_files(
    data_dir: Path,
    *,
    program: Sequence[str] = ("gatekeeper_grpc",),
    soft: int = FILES,
    certificates: CertificateFolder | None = None,
    **settings: str,
) -> Iterator[Gatekeeper]:
    variables = {**(certificates.variables if certificates else {}), **settings}
    with start("serve", data_dir=data_dir, program=program, launcher=with_files(soft, FILES), **variables) as process:
        try:
            yield Gatekeeper(process, data_dir, certificates)
        finally:
            stop(process)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Lets this process have the clients' ends open."""
    before, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if highest < 4 * FILES:
        pytest.fail(f"this test needs {4 * FILES} open files; the hard limit is {highest}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, highest))


@contextmanager
def idle_connections(
    port: int, *, count: int, addresses: int, begin: Callable[[socket.socket], object] = Http2
) -> Iterator[None]:
    """Connections that do what `begin` does, by default the handshake of HTTP/2, and nothing more."""
    begun = []  # A connection that nobody holds is closed.
    with ExitStack() as stack:
        for number in range(count):
            source = (f"127.0.1.{number % addresses + 1}", 0)
            connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S, source_address=source)
            stack.enter_context(connection)
            with suppress(OSError):  # The server has closed it.
                begun.append(begin(connection))
        yield


def served(port: int, *, timeout_s: float, certificates: CertificateFolder | None = None) -> int:
    """How many victims are served, each on a connection of its own from another address."""
    with proxied(port, source="127.0.2.1") as proxy:
        return sum(is_served(proxy.port, timeout_s=timeout_s, certificates=certificates) for _ in range(VICTIMS))


def is_served(port: int, *, timeout_s: float, certificates: CertificateFolder | None) -> bool:
    with certificates.channel(port) if certificates else connect(port) as channel:
        call = EvaluationServiceStub(channel).EvaluateFlags.future(ANNA, timeout=timeout_s, wait_for_ready=True)
        return call.code() is grpc.StatusCode.OK


def readiness(ops_port: int) -> dict[str, object]:
    with urlopen(f"http://127.0.0.1:{ops_port}/readyz", timeout=TIMEOUT_S) as response:
        answer: dict[str, object] = json.load(response)
        return answer


def open_files(server: Gatekeeper) -> int:
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


@pytest.mark.promise("F1")
@pytest.mark.parametrize("addresses", [1, 200])
@pytest.mark.usefixtures("many_files")
def test_1200_idle_connections_at_1024_files_keep_nobody_out(addresses: int, data_dir: Path) -> None:
    with (
        serving_with_few_files(data_dir) as server,
        idle_connections(server.port, count=ATTACKING, addresses=addresses),
    ):
        assert served(server.port, timeout_s=10.0) >= VICTIMS * 0.95
        assert readiness(server.ops_port)["stale"] is False
        assert open_files(server) < FILES
        assert server.logged("connections_closed")


@pytest.mark.promise("F1")
@pytest.mark.parametrize("crowded", ["port", "admin_port"])
@pytest.mark.usefixtures("many_files")
def test_a_crowd_at_one_listener_keeps_nobody_out_of_either(crowded: str, data_dir: Path) -> None:
    with (
        serving_with_few_files(data_dir, GATEKEEPER_ADMIN_LISTEN="127.0.0.1:0") as server,
        idle_connections(getattr(server, crowded), count=ATTACKING, addresses=200),
    ):
        assert served(server.port, timeout_s=10.0) >= VICTIMS * 0.95
        with server.admin() as admin:
            assert admin.GetFlag(GetFlagRequest(key="new_checkout"), timeout=TIMEOUT_S).flag.key == "new_checkout"
        assert open_files(server) < FILES
        assert server.logged("connections_closed")


def half_a_hello(connection: socket.socket) -> object:
    """Begin the handshake of TLS and send nothing more: the first bytes of a record, of which most are missing."""
    connection.sendall(b"\x16\x03\x01\x02\x00\x01")
    return connection


@pytest.mark.promise("F1", "C1")
@pytest.mark.usefixtures("many_files")
def test_1200_unfinished_tls_handshakes_keep_nobody_out(data_dir: Path, tmp_path: Path) -> None:
    folder = CertificateFolder(tmp_path)
    with (
        serving_with_few_files(data_dir, certificates=folder) as server,
        idle_connections(server.port, count=ATTACKING, addresses=200, begin=half_a_hello),
    ):
        assert served(server.port, timeout_s=10.0, certificates=folder) >= VICTIMS * 0.95
        assert open_files(server) < FILES


@pytest.mark.usefixtures("many_files")
def test_twin_if_none_gives_way_they_keep_everybody_out(data_dir: Path) -> None:
    program = ("tests.faults.sabotaged", "no_connection_gives_way")
    with (
        serving_with_few_files(data_dir, program=program) as server,
        idle_connections(server.port, count=ATTACKING, addresses=1),
    ):
        assert served(server.port, timeout_s=0.2) == 0


@pytest.mark.usefixtures("many_files")
def test_100_idle_connections_to_the_health_port_keep_no_probe_out(data_dir: Path) -> None:
    with serving_with_few_files(data_dir) as server, idle_connections(server.health_port, count=100, addresses=1):
        assert eventually(lambda: check_health(server.health_port), timeout_s=10.0)


def check_health(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        return bool(check.future(b"", timeout=2.0, wait_for_ready=True).code() is grpc.StatusCode.OK)


def test_a_start_states_the_limits_and_warns_of_few_files(data_dir: Path) -> None:
    with serving_with_few_files(data_dir) as server:
        opened, limits = server.logged("open_files"), server.logged("limits")
        warning, serving = server.logged("few_open_files"), server.logged("serving")

    assert (opened["before"], opened["limit"], warning["limit"]) == (FILES, FILES, FILES)
    assert limits["max_connections"] == FILES - 186
    assert limits["pending_of_strangers_mib"] <= 64
    assert serving["clients_mib"] == limits["clients_mib"]


def test_the_soft_limit_of_files_is_raised_to_the_hard_one(data_dir: Path) -> None:
    with serving_with_few_files(data_dir, soft=256) as server:
        opened = server.logged("open_files")
        now = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)

    assert (opened["before"], opened["limit"], now) == (256, FILES, (FILES, FILES))
