"""Certificates: which ones a client command trusts, and which it shows to a server that asks for one (mutual TLS)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

CA_VARIABLE = "GATEKEEPER_SERVER_CA_FILE"
CERT_VARIABLE = "GATEKEEPER_CLIENT_CERT_FILE"
KEY_VARIABLE = "GATEKEEPER_CLIENT_KEY_FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """A certificate and its key, in PEM."""

    chain: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, cert_file: str, key_file: str) -> Self:
        """Read both files.

        Raises:
            ValueError: One cannot be read, or the key is not that of the certificate; the message names the file.
        """
        found = cls(chain=_content(cert_file), key=_content(key_file))
        _check_pair(cert_file, key_file)
        return found


def read_roots(file: str) -> bytes:
    """Read the certificates of issuers.

    Raises:
        ValueError: The file cannot be read, or has none; the message names it.
    """
    import ssl  # noqa: PLC0415

    content = _content(file)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        raise ValueError(f"{file!r} must have certificates in PEM") from None
    return content


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as exc:
        raise ValueError(f"{file!r} cannot be read: {exc.strerror}") from None


def _check_pair(cert_file: str, key_file: str) -> None:
    """Require what gRPC takes without a word, to fail each handshake then."""
    import ssl  # noqa: PLC0415 - no other command needs it

    try:
        # An empty passphrase: otherwise it would ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError:
        raise ValueError(
            f"{cert_file!r} and {key_file!r} must be a certificate and its own key in PEM, the key without a passphrase"
        ) from None
