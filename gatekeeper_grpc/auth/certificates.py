"""The files of a TLS certificate: read, and checked before a client sees them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from gatekeeper_grpc.config.settings import Settings, SettingsError, variable_of

_Parsed = TypeVar("_Parsed")

_MIN_RSA_BITS = 2_048
_CURVES = ("secp256r1", "secp384r1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate that is valid now, and the key that belongs to it, in PEM."""

    chain: bytes
    """The certificate of the server, followed by those that lead to its issuer."""
    key: bytes = field(repr=False)
    client_ca: bytes | None
    """The issuers of clients; None: clients need no certificate."""
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """Where the certificate of the listeners is."""

    chain: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> "CertificateFiles | None":
        """Return those of the settings; None if there is no TLS."""
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            return None
        return cls(chain=settings.tls_cert_file, key=settings.tls_key_file, client_ca=settings.tls_client_ca_file)

    def read(self) -> Certificate:
        """Read and check the files.

        Raises:
            SettingsError: One cannot be read or used; the message names its variable, and says why.
        """
        chain, key = _content("tls_cert_file", self.chain), _content("tls_key_file", self.key)
        client_ca = _content("tls_client_ca_file", self.client_ca) if self.client_ca else None
        certificate, *_ = _parsed("tls_cert_file", load_pem_x509_certificates, chain, "certificates in PEM")
        if client_ca is not None:
            _parsed("tls_client_ca_file", load_pem_x509_certificates, client_ca, "certificates in PEM")
        _check_key(key, certificate.public_key())
        _check_time(certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        return Certificate(chain=chain, key=key, client_ca=client_ca, not_after=certificate.not_valid_after_utc)


def _content(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise _refusal(name, f"'{path}' cannot be read: {exc.strerror}") from None


def _parsed(name: str, parse: Callable[[bytes], _Parsed], content: bytes, what: str) -> _Parsed:
    try:
        return parse(content)
    except ValueError:
        raise _refusal(name, f"the file must hold {what}") from None


def _check_key(content: bytes, of_certificate: PublicKeyTypes) -> None:
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        raise _refusal("tls_key_file", "the file must hold a private key without a passphrase") from None
    except ValueError:
        raise _refusal("tls_key_file", "the file must hold a private key in PEM") from None
    if key.public_key() != of_certificate:
        raise _refusal("tls_key_file", f"the key is not that of the certificate of {variable_of('tls_cert_file')}")
    if not _is_usable(of_certificate):
        raise _refusal(
            "tls_key_file", f"the key must be RSA of {_MIN_RSA_BITS} bits or more, or of the curve P-256 or P-384"
        )


def _is_usable(key: PublicKeyTypes) -> bool:
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= _MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES


def _check_time(not_before: datetime, not_after: datetime) -> None:
    now = datetime.now(UTC)
    if now > not_after:
        raise _refusal("tls_cert_file", f"the certificate expired at {not_after:%Y-%m-%dT%H:%M:%SZ}")
    if now < not_before:
        raise _refusal("tls_cert_file", f"the certificate is not valid before {not_before:%Y-%m-%dT%H:%M:%SZ}")


def _refusal(name: str, text: str) -> SettingsError:
    return SettingsError(f"{variable_of(name)}: {text}")
