"""TLS of real processes: versions, failed handshakes, files that cannot be used, a fleet."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_grpc.transport.core import HandshakeFailure
from tests.support.processes import TIMEOUT_S, Gatekeeper, copied, run, serving
from tests.support.tls import HOST, CertificateFolder, Issuer
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(600)

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
ALICE = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice"))
EVERYWHERE = {"GATEKEEPER_LISTEN": "0.0.0.0:0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> CertificateFolder:
    return CertificateFolder(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def secure(
    first_started_dir: Path, folder: CertificateFolder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gatekeeper]:
    """A server with TLS on its gRPC port."""
    with serving(copied(first_started_dir, tmp_path_factory.mktemp("secure")), **folder.variables) as started:
        yield started


def speaks(folder: CertificateFolder, gatekeeper: Gatekeeper, version: ssl.TLSVersion) -> bool:
    try:
        with folder.connected(gatekeeper.port, version=version) as connection:
            return connection.recv(1) != b""
    except ssl.SSLError:
        return False


def send_plaintext(gatekeeper: Gatekeeper) -> None:
    with socket.create_connection((HOST, gatekeeper.port), TIMEOUT_S) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        plain.recv(1)


def evaluates(folder: CertificateFolder, port: int) -> bool:
    with folder.channel(port) as channel:
        return bool(EvaluationServiceStub(channel).EvaluateFlags(ALICE, timeout=TIMEOUT_S).flags)


def samples(gatekeeper: Gatekeeper, name: str) -> dict[str, float]:
    """The samples of a metric, by its labels as they stand."""
    with urlopen(f"http://{HOST}:{gatekeeper.ops_port}/metrics", timeout=TIMEOUT_S) as response:
        lines = response.read().decode().splitlines()
    return {
        line[len(name) : line.rindex(" ")]: float(line[line.rindex(" ") :]) for line in lines if line.startswith(name)
    }


def failures(gatekeeper: Gatekeeper) -> dict[str, float]:
    found = samples(gatekeeper, "gatekeeper_tls_failed_handshakes_total")
    return {labels.split('"')[1]: count for labels, count in found.items() if count}


def test_tls_1_3_alone_is_spoken(secure: Gatekeeper, folder: CertificateFolder) -> None:
    assert {version.name: speaks(folder, secure, version) for version in (TLS_1_2, TLS_1_3)} == {
        "TLSv1_2": False,
        "TLSv1_3": True,
    }


def test_tls_1_2_is_spoken_if_a_setting_says_so(data_dir: Path, folder: CertificateFolder) -> None:
    with serving(data_dir, GATEKEEPER_TLS_MIN_VERSION="1.2", **folder.variables) as gatekeeper:
        assert [speaks(folder, gatekeeper, version) for version in (TLS_1_2, TLS_1_3)] == [True, True]


def test_failed_handshakes_are_counted_and_write_no_line(
    secure: Gatekeeper, folder: CertificateFolder, tmp_path: Path
) -> None:
    send_plaintext(secure)
    assert eventually(lambda: failures(secure).get(HandshakeFailure.NO_TLS))  # Those of earlier tests are counted too.
    before, log = failures(secure), secure.log.text()
    stranger = CertificateFolder(tmp_path, Issuer("another"))
    for _ in range(20):
        assert not speaks(folder, secure, TLS_1_2)
        assert not speaks(stranger, secure, TLS_1_3)
        send_plaintext(secure)

    causes = (HandshakeFailure.NO_TLS, HandshakeFailure.REFUSED_BY_CLIENT, HandshakeFailure.TOO_OLD)
    expected: dict[str, float] = {cause: before.get(cause, 0) + 20 for cause in causes}
    assert eventually(lambda: failures(secure) == {**before, **expected}), (before, failures(secure))
    assert "andshake" not in secure.log.text()[len(log) :]


def test_a_fleet_speaks_tls_and_its_own_ports_too(data_dir: Path, folder: CertificateFolder) -> None:
    own = {"GATEKEEPER_WORKERS": "2", "GATEKEEPER_HEALTH_TLS": "true"}
    with serving(data_dir, **own, **folder.variables) as fleet:
        assert evaluates(folder, fleet.port)
        expiries = samples(fleet, "gatekeeper_tls_certificate_expiry_timestamp_seconds")
        assert expiries.keys() == {'{worker="1"}', '{worker="2"}', '{worker="supervisor"}'}
        for port in (fleet.port, fleet.health_port):
            with pytest.raises(ssl.SSLError), folder.connected(port, version=TLS_1_2):
                pass
            with folder.connected(port, version=TLS_1_3) as connection:
                assert connection.version() == "TLSv1.3"


def test_a_bad_certificate_is_named_before_a_database_starts(data_dir: Path, tmp_path: Path) -> None:
    folder = CertificateFolder(tmp_path)
    folder.key.unlink()

    for command in (("serve",), ("config", "--check")):
        code, _, complaint = run(*command, data_dir=data_dir, **folder.variables)

        assert (code, complaint.splitlines()[-1]) == (
            1,
            f"gatekeeper: GATEKEEPER_TLS_KEY_FILE: '{folder.key}' cannot be read: No such file or directory",
        )
        assert "postgres" not in complaint


def test_serve_warns_of_a_network_without_tls(data_dir: Path) -> None:
    with serving(data_dir, **EVERYWHERE) as gatekeeper:
        assert gatekeeper.logged("listening_without_tls")["listen"] == "0.0.0.0:0"


def test_serve_warns_of_nothing_on_loopback(secure: Gatekeeper) -> None:
    assert "listening_without_tls" not in secure.log.text()


def test_serve_refuses_a_network_without_tls_if_it_is_required(data_dir: Path) -> None:
    code, _, complaint = run("serve", data_dir=data_dir, GATEKEEPER_REQUIRE_TLS="true", **EVERYWHERE)

    assert code == 1
    assert "GATEKEEPER_TLS_CERT_FILE must be set to listen on 0.0.0.0:0" in complaint
