"""Client commands against a server that asks for certificates: what they show, and files that cannot be shown."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from tests.support.processes import run
from tests.support.servers import StartServer
from tests.support.tls import HOST, CertificateFolder, Issued, Issuer, new_key, pem_of

CLIENTS = Issuer("issuer of clients")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return CertificateFolder(tmp_path)


@pytest.fixture
def mutual(start_server: StartServer, folder: CertificateFolder) -> GatekeeperServer:
    """A server that asks clients for a certificate."""
    client_ca = folder.folder / "clients.crt"
    client_ca.write_bytes(CLIENTS.pem)
    return start_server(**folder.settings, tls_client_ca_file=client_ca)


def stored(folder: Path, issued: Issued) -> list[str]:
    """Store a certificate and its key; return the options that name them."""
    cert, key = folder / "client.crt", folder / "client.key"
    cert.write_bytes(issued.chain)
    key.write_bytes(issued.key)
    return ["--client-cert", str(cert), "--client-key", str(key)]


def evaluate(folder: CertificateFolder, server: str, *options: str, **variables: str) -> tuple[int, str]:
    """Run `gatekeeper evaluate` with trust in the issuer; return its exit code and what it complains of."""
    roots = folder.folder / "roots.crt"
    roots.write_bytes(folder.issuer.pem)
    code, _, complaint = run(
        *("evaluate", "bob", "--server", server, *options),
        data_dir=folder.folder,
        GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=str(roots),
        **variables,
    )
    return code, complaint


@pytest.mark.promise("D5")
def test_a_command_shows_its_certificate(mutual: GatekeeperServer, folder: CertificateFolder) -> None:
    server = f"https://{HOST}:{mutual.port}"
    options = stored(folder.folder, CLIENTS.issue("ops"))
    variables = {"GATEKEEPER_CLIENT_CERT_FILE": options[1], "GATEKEEPER_CLIENT_KEY_FILE": options[3]}

    assert evaluate(folder, server, *options)[0] == 0
    assert evaluate(folder, server, **variables)[0] == 0


@pytest.mark.promise("D5")
def test_twin_without_one_or_with_anothers_it_is_not_served(
    mutual: GatekeeperServer, folder: CertificateFolder
) -> None:
    server = f"https://{HOST}:{mutual.port}"

    assert evaluate(folder, server)[0] == 6
    assert evaluate(folder, server, *stored(folder.folder, Issuer().issue("ops")))[0] == 6


def without(options: list[str], name: str) -> list[str]:
    at = options.index(name)
    return options[:at] + options[at + 2 :]


BOTH = "must be a certificate and its own key in PEM, the key without a passphrase"
REFUSED: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a missing file": (lambda o: [*o[:3], "/no/such.key"], "'/no/such.key' cannot be read: No such file or directory"),
    "a folder": (lambda o: [o[0], "/tmp", *o[2:]], "'/tmp' cannot be read: Is a directory"),
    "no key": (lambda o: without(o, "--client-key"), "--client-key (GATEKEEPER_CLIENT_KEY_FILE) is missing"),
    "no certificate": (lambda o: without(o, "--client-cert"), "--client-cert (GATEKEEPER_CLIENT_CERT_FILE) is missing"),
    "the files exchanged": (lambda o: [o[0], o[3], o[2], o[1]], BOTH),
}


@pytest.mark.parametrize(("changed", "complaint"), REFUSED.values(), ids=REFUSED)
def test_files_that_cannot_be_shown_are_refused_in_words(
    folder: CertificateFolder, changed: Callable[[list[str]], list[str]], complaint: str
) -> None:
    options = changed(stored(folder.folder, CLIENTS.issue("ops")))

    code, said = evaluate(folder, f"https://{HOST}:1", *options)

    assert (code, complaint in said) == (2, True), said


KEYS = {
    "of another certificate": lambda: pem_of(new_key()),
    "with a passphrase": lambda: pem_of(new_key(), passphrase=b"canary-passphrase"),
    "that is none": lambda: b"canary",
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_key_that_does_not_fit_is_refused_and_not_shown(folder: CertificateFolder, key: Callable[[], bytes]) -> None:
    options = stored(folder.folder, Issued(chain=CLIENTS.issue("ops").chain, key=key()))

    code, said = evaluate(folder, f"https://{HOST}:1", *options)

    assert (code, BOTH in said, "canary" in said) == (2, True, False)


def test_a_certificate_for_plaintext_is_refused(folder: CertificateFolder) -> None:
    code, said = evaluate(folder, f"{HOST}:1", *stored(folder.folder, CLIENTS.issue("ops")))

    assert (code, "needs a server with TLS: --server https://127.0.0.1:1" in said) == (2, True)
