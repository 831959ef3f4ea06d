"""TLS of a running server: what it shows, whom it asks for a certificate, and what it does with new files."""

import datetime as dt
import json
import socket
import ssl
import threading
import time
from contextlib import ExitStack
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from structlog.testing import capture_logs

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.config.settings import SettingsError
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from tests.support.clients import TIMEOUT_S
from tests.support.servers import StartServer, connect
from tests.support.tls import HOST, CertificateFolder, Issued, Issuer, new_key, pem_of
from tests.support.waiting import eventually

ANNA = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return CertificateFolder(tmp_path)


@pytest.fixture
def secure(start_server: StartServer, folder: CertificateFolder) -> GatekeeperServer:
    """A server that speaks TLS on all its ports."""
    return start_server(**folder.settings, health_tls=True, ops_tls=True)


def evaluate(channel: grpc.Channel) -> int:
    return EvaluationServiceStub(channel).EvaluateFlags(ANNA, timeout=TIMEOUT_S).revision


def outcome(channel: grpc.Channel) -> grpc.StatusCode:
    try:
        evaluate(channel)
    except grpc.RpcError as refused:
        code: grpc.StatusCode = refused.code()
        return code
    return grpc.StatusCode.OK


def serial_shown(folder: CertificateFolder, port: int) -> bytes:
    with folder.connected(port) as connection:
        shown = connection.getpeercert(binary_form=True)
        assert shown
        return shown


def der(issued: Issued) -> bytes:
    return ssl.PEM_cert_to_DER_cert(issued.chain.decode())


def page(folder: CertificateFolder, port: int, path: str) -> str:
    connection = HTTPSConnection(HOST, port, timeout=TIMEOUT_S, context=folder.context())
    connection.request("GET", path)
    return connection.getresponse().read().decode()


def metric(folder: CertificateFolder, server: GatekeeperServer, name: str) -> float:
    lines = page(folder, server.ops_port, "/metrics").splitlines()
    (value,) = (line.rpartition(" ")[2] for line in lines if line.startswith(f"gatekeeper_{name} "))
    return float(value)


def test_clients_that_trust_the_issuer_are_served(secure: GatekeeperServer, folder: CertificateFolder) -> None:
    with folder.channel(secure.port) as channel:
        assert evaluate(channel) == 0


def test_clients_that_trust_others_or_speak_plaintext_are_not(
    secure: GatekeeperServer, folder: CertificateFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = CertificateFolder(tmp_path_factory.mktemp("stranger"), Issuer("another"))
    with stranger.channel(secure.port) as distrustful, connect(secure) as plain:
        assert [outcome(distrustful), outcome(plain)] == [grpc.StatusCode.UNAVAILABLE] * 2


def test_the_health_port_speaks_tls_if_it_is_told_to(secure: GatekeeperServer, folder: CertificateFolder) -> None:
    with folder.channel(secure.health_port) as channel:
        answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=TIMEOUT_S)

    assert answer.status == HealthCheckResponse.SERVING


def test_the_operations_port_speaks_tls_if_it_is_told_to(secure: GatekeeperServer, folder: CertificateFolder) -> None:
    assert json.loads(page(folder, secure.ops_port, "/readyz"))["ready"]


def test_probes_need_no_tls_unless_it_is_asked_for(start_server: StartServer, folder: CertificateFolder) -> None:
    server = start_server(**folder.settings)
    with grpc.insecure_channel(f"{HOST}:{server.health_port}") as channel:
        answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=TIMEOUT_S)

    assert answer.status == HealthCheckResponse.SERVING


def test_a_client_that_does_not_finish_its_handshake_delays_no_page(
    secure: GatekeeperServer, folder: CertificateFolder
) -> None:
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(socket.create_connection((HOST, secure.ops_port)))
        assert page(folder, secure.ops_port, "/livez") == "alive\n"


# --- New files -------------------------------------------------------------------------------------------------------


def test_a_new_certificate_is_shown_without_a_restart(secure: GatekeeperServer, folder: CertificateFolder) -> None:
    renewed = folder.issuer.issue(lasts=dt.timedelta(days=90))
    with folder.channel(secure.port) as open_before:
        evaluate(open_before)
        folder.put(renewed)

        for port in (secure.port, secure.health_port, secure.ops_port):
            assert eventually(lambda port=port: serial_shown(folder, port) == der(renewed))  # type: ignore[misc]
        assert evaluate(open_before) == 0
    left_s = metric(folder, secure, "tls_certificate_expiry_timestamp_seconds") - time.time()
    assert 89 < left_s / 86_400 < 90


BAD = {
    "unreadable": lambda folder: Issued(chain=b"", key=folder.issuer.issue().key),
    "with another key": lambda folder: Issued(chain=folder.issuer.issue().chain, key=pem_of(new_key())),
    "expired": lambda folder: folder.issuer.issue(began=2 * HOUR, lasts=-HOUR),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_new_certificate_leaves_the_old_and_is_reported_once(
    secure: GatekeeperServer, folder: CertificateFolder, bad: Any
) -> None:
    assert secure.tls
    before = serial_shown(folder, secure.port)
    folder.put(bad(folder))
    with capture_logs() as logs:
        for _ in range(3):
            secure.tls.check()

    assert serial_shown(folder, secure.port) == before
    assert metric(folder, secure, "tls_certificate_refused") == 1
    refused = [line for line in logs if line["event"] == "tls_certificate_refused"]
    assert len(refused) <= 1  # The server's own check may have come first.
    assert secure.tls.refused.startswith("GATEKEEPER_TLS_")


def test_files_that_are_mended_are_shown(secure: GatekeeperServer, folder: CertificateFolder) -> None:
    assert secure.tls
    folder.key.write_bytes(b"")
    secure.tls.check()
    folder.put(mended := folder.issuer.issue())
    secure.tls.check()

    assert serial_shown(folder, secure.port) == der(mended)
    assert metric(folder, secure, "tls_certificate_refused") == 0


def test_a_server_does_not_start_with_a_bad_certificate(start_server: StartServer, folder: CertificateFolder) -> None:
    folder.key.write_bytes(b"")

    with pytest.raises(SettingsError, match="GATEKEEPER_TLS_KEY_FILE"):
        start_server(**folder.settings)


# --- Certificates of clients -----------------------------------------------------------------------------------------

CLIENTS = Issuer("issuer of clients")
SPIFFE = "spiffe://example.org/checkout"


@pytest.fixture
def mutual(start_server: StartServer, folder: CertificateFolder, tmp_path: Path) -> GatekeeperServer:
    """A server that asks clients for a certificate."""
    client_ca = tmp_path / "clients.crt"
    client_ca.write_bytes(CLIENTS.pem)
    return start_server(**folder.settings, tls_client_ca_file=client_ca, health_tls=True, ops_tls=True)


CALLERS = {
    "of the issuer": (CLIENTS.issue("checkout", uri=SPIFFE), grpc.StatusCode.OK),
    "none": (None, grpc.StatusCode.UNAVAILABLE),
    "of another issuer": (Issuer().issue("checkout", uri=SPIFFE), grpc.StatusCode.UNAVAILABLE),
    "expired": (CLIENTS.issue("checkout", uri=SPIFFE, began=2 * HOUR, lasts=-HOUR), grpc.StatusCode.UNAVAILABLE),
}


@pytest.mark.parametrize(("client", "code"), CALLERS.values(), ids=CALLERS)
def test_only_clients_with_a_good_certificate_are_served(
    mutual: GatekeeperServer, folder: CertificateFolder, client: Issued | None, code: grpc.StatusCode
) -> None:
    with folder.channel(mutual.port, client) as channel:
        assert outcome(channel) is code


def test_the_log_of_a_call_names_the_certificate(mutual: GatekeeperServer, folder: CertificateFolder) -> None:
    client = CLIENTS.issue("checkout", uri=SPIFFE)
    with capture_logs() as logs, folder.channel(mutual.port, client) as channel:
        evaluate(channel)
        assert eventually(lambda: any(line["event"] == "rpc" for line in logs))

    (line,) = (line for line in logs if line["event"] == "rpc")
    assert line["client_certificate"] == SPIFFE


def test_a_call_without_a_certificate_has_none_in_the_log(secure: GatekeeperServer, folder: CertificateFolder) -> None:
    with capture_logs() as logs, folder.channel(secure.port) as channel:
        evaluate(channel)
        assert eventually(lambda: any(line["event"] == "rpc" for line in logs))

    assert ["client_certificate" in line for line in logs if line["event"] == "rpc"] == [False]


def test_probes_need_no_certificate(mutual: GatekeeperServer, folder: CertificateFolder) -> None:
    with folder.channel(mutual.health_port) as channel:
        assert HealthStub(channel).Check(HealthCheckRequest(), timeout=TIMEOUT_S).status == HealthCheckResponse.SERVING
    assert page(folder, mutual.ops_port, "/livez") == "alive\n"


# --- What connections leave behind -----------------------------------------------------------------------------------


def left_behind() -> tuple[int, int]:
    """Descriptors and threads of this process, which has both ends."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), threading.active_count()


def connect_and_leave(folder: CertificateFolder, port: int) -> None:
    """A good connection that calls nothing, one whose handshake fails, and one that does not finish it."""
    with folder.connected(port) as good:
        good.recv(1)
    with socket.create_connection((HOST, port), TIMEOUT_S) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        plain.recv(1)
    with socket.create_connection((HOST, port), TIMEOUT_S) as unfinished:
        unfinished.sendall(b"\x16\x03\x01\x02\x00\x01")


@pytest.mark.promise("C6")
def test_connections_leave_no_descriptor_and_no_thread(secure: GatekeeperServer, folder: CertificateFolder) -> None:
    for port in (secure.port, secure.health_port, secure.ops_port):
        connect_and_leave(folder, port)
    before = left_behind()
    for _ in range(50):
        connect_and_leave(folder, secure.port)

    assert eventually(lambda: left_behind() <= before)
