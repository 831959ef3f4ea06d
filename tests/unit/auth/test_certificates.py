"""Certificate files: what is read, and how each fault is named."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gatekeeper_grpc.auth.certificates import CertificateFiles
from gatekeeper_grpc.config.settings import SettingsError
from tests.support.tls import CertificateFolder, Issued, Issuer, new_key, pem_of

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def folder(tmp_path: Path) -> CertificateFolder:
    return CertificateFolder(tmp_path)


def files_of(folder: CertificateFolder, **others: Path) -> CertificateFiles:
    return CertificateFiles(**{"chain": folder.chain, "key": folder.key, **others})


def refusal(files: CertificateFiles) -> str:
    with pytest.raises(SettingsError) as refused:
        files.read()
    return str(refused.value)


@pytest.mark.parametrize(
    "key", [new_key(), ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65_537, 2_048)]
)
def test_a_certificate_is_read_with_its_key_and_its_end(folder: CertificateFolder, key: Any) -> None:
    folder.put(folder.issuer.issue(key=key, lasts=dt.timedelta(days=2)))

    certificate = files_of(folder).read()

    assert (certificate.chain, certificate.key) == (folder.chain.read_bytes(), folder.key.read_bytes())
    assert dt.timedelta(days=1) < certificate.not_after - dt.datetime.now(dt.UTC) < dt.timedelta(days=2)


def test_a_certificate_shows_its_key_in_no_text(folder: CertificateFolder) -> None:
    assert "PRIVATE" not in repr(files_of(folder).read())


def test_a_file_that_is_not_there_is_named_with_its_variable(folder: CertificateFolder) -> None:
    folder.key.unlink()

    assert refusal(files_of(folder)) == (
        f"GATEKEEPER_TLS_KEY_FILE: '{folder.key}' cannot be read: No such file or directory"
    )


BROKEN = {
    "a certificate that is none": (
        lambda issued: Issued(chain=b"canary", key=issued.key),
        "GATEKEEPER_TLS_CERT_FILE: the file must hold certificates in PEM",
    ),
    "a key that is none": (
        lambda issued: Issued(chain=issued.chain, key=b"canary"),
        "GATEKEEPER_TLS_KEY_FILE: the file must hold a private key in PEM",
    ),
    "a key with a passphrase": (
        lambda issued: Issued(chain=issued.chain, key=pem_of(new_key(), b"canary")),
        "GATEKEEPER_TLS_KEY_FILE: the file must hold a private key without a passphrase",
    ),
    "another key": (
        lambda issued: Issued(chain=issued.chain, key=pem_of(new_key())),
        "GATEKEEPER_TLS_KEY_FILE: the key is not that of the certificate of GATEKEEPER_TLS_CERT_FILE",
    ),
    "an expired one": (
        lambda _issued: Issuer().issue(began=2 * HOUR, lasts=-HOUR),
        "GATEKEEPER_TLS_CERT_FILE: the certificate expired at ",
    ),
    "one of tomorrow": (
        lambda _issued: Issuer().issue(began=-HOUR, lasts=2 * HOUR),
        "GATEKEEPER_TLS_CERT_FILE: the certificate is not valid before ",
    ),
    "a weak key": (
        lambda _issued: Issuer().issue(key=rsa.generate_private_key(65_537, 1_024)),
        "GATEKEEPER_TLS_KEY_FILE: the key must be RSA of 2048 bits or more, or of the curve P-256 or P-384",
    ),
    "a key of a kind that no client asks for": (
        lambda _issued: Issuer().issue(key=ed25519.Ed25519PrivateKey.generate()),
        "GATEKEEPER_TLS_KEY_FILE: the key must be RSA of 2048 bits or more, or of the curve P-256 or P-384",
    ),
}


@pytest.mark.parametrize(("broken", "words"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_used_is_refused_in_words(folder: CertificateFolder, broken: Any, words: str) -> None:
    folder.put(broken(folder.issuer.issue()))

    text = refusal(files_of(folder))

    assert text.startswith(words)
    assert "canary" not in text


def test_issuers_of_clients_that_are_none_are_refused(folder: CertificateFolder) -> None:
    words = "GATEKEEPER_TLS_CLIENT_CA_FILE: the file must hold certificates in PEM"

    assert refusal(files_of(folder, client_ca=folder.key)) == words
