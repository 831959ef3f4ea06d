"""Certificates that tests make, and TLS in front of a server that speaks none."""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
_HOUR = dt.timedelta(hours=1)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(key: Any, passphrase: bytes = b"") -> bytes:
    """A private key as a file has it."""
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate and its key, in PEM."""

    chain: bytes
    key: bytes


@dataclass(frozen=True)
class Issuer:
    """Issues certificates that who trusts `pem` trusts."""

    name: str = "test issuer"
    _key: Any = field(default_factory=new_key, repr=False)

    @property
    def pem(self) -> bytes:
        """The issuer's own certificate."""
        return _signed(self.name, self._key.public_key(), self.name, self._key, is_issuer=True)

    def issue(
        self,
        name: str = HOST,
        *,
        key: Any = None,
        began: dt.timedelta = _HOUR,
        lasts: dt.timedelta = _HOUR,
        uri: str = "",
    ) -> Issued:
        """Issue a certificate for 127.0.0.1 and localhost, or for a client that has the name `uri`.

        Args:
            name: The common name.
            key: Its key; None: a new one.
            began: How long ago it became valid.
            lasts: How long it stays valid.
            uri: A name of a client.
        """
        key = new_key() if key is None else key
        names = [x509.UniformResourceIdentifier(uri)] if uri else _HOST_NAMES
        chain = _signed(name, key.public_key(), self.name, self._key, names=names, began=began, lasts=lasts)
        return Issued(chain=chain, key=pem_of(key))


_HOST_NAMES = [x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")]


def _signed(
    name: str,
    public_key: Any,
    issuer: str,
    issuer_key: Any,
    *,
    names: Any = _HOST_NAMES,
    began: dt.timedelta = _HOUR,
    lasts: dt.timedelta = _HOUR,
    is_issuer: bool = False,
) -> bytes:
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - began)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_issuer, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass(frozen=True)
class CertificateFolder:
    """The files of a server's certificate, as an operator keeps them."""

    folder: Path
    issuer: Issuer = field(default_factory=Issuer)

    def __post_init__(self) -> None:
        self.put(self.issuer.issue())

    @property
    def chain(self) -> Path:
        return self.folder / "tls.crt"

    @property
    def key(self) -> Path:
        return self.folder / "tls.key"

    @property
    def issuer_file(self) -> Path:
        """What a program trusts."""
        file = self.folder / "issuer.crt"
        if not file.exists():
            file.write_bytes(self.issuer.pem)
        return file

    def put(self, issued: Issued) -> None:
        """Replace both files."""
        self.chain.write_bytes(issued.chain)
        self.key.write_bytes(issued.key)

    @property
    def settings(self) -> dict[str, Path]:
        """For a server of this process."""
        return {"tls_cert_file": self.chain, "tls_key_file": self.key}

    @property
    def variables(self) -> dict[str, str]:
        """For a server of its own."""
        return {f"GATEKEEPER_{name.upper()}": str(path) for name, path in self.settings.items()}

    @property
    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server without the rest of ours."""
        return grpc.ssl_server_credentials([(self.key.read_bytes(), self.chain.read_bytes())])

    def channel(self, port: int = 0, client: Issued | None = None, *, target: str = "", **options: Any) -> grpc.Channel:
        """Open a connection of its own, to a port or a target, that trusts the issuer; with a client's certificate."""
        own = (client.key, client.chain) if client else (None, None)
        credentials = grpc.ssl_channel_credentials(self.issuer.pem, *own)
        arguments = {"grpc.use_local_subchannel_pool": 1, "grpc.max_reconnect_backoff_ms": 100, **options}
        return grpc.secure_channel(target or f"{HOST}:{port}", credentials, list(arguments.items()))

    def context(self, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """What a client without gRPC connects with, by one version of TLS alone if it is given."""
        context = ssl.create_default_context(cadata=self.issuer.pem.decode())
        context.set_alpn_protocols(["h2"])
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context

    @contextmanager
    def connected(self, port: int, *, version: ssl.TLSVersion | None = None) -> Iterator[ssl.SSLSocket]:
        """Connect without gRPC for the length of the block.

        Raises:
            ssl.SSLError: The handshake fails.
        """
        with (
            socket.create_connection((HOST, port), timeout=60) as raw,
            self.context(version=version).wrap_socket(raw, server_hostname=HOST) as connection,
        ):
            yield connection


def self_signed(folder: Path) -> Path:
    """Make a certificate and its key for 127.0.0.1, in one file."""
    key = new_key()
    path = folder / "tls.pem"
    path.write_bytes(pem_of(key) + _signed(HOST, key.public_key(), HOST, key, is_issuer=True))
    return path


@contextmanager
def terminated(certificate: Path, to_port: int) -> Iterator[int]:
    """Take TLS connections for the length of the block, and forward them; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=_accept, args=(listener, context, to_port), daemon=True).start()
        yield int(listener.getsockname()[1])


def _accept(listener: socket.socket, context: ssl.SSLContext, to_port: int) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(plain, context, to_port), daemon=True).start()


def _serve(plain: socket.socket, context: ssl.SSLContext, to_port: int) -> None:
    with (
        plain,
        suppress(OSError),
        context.wrap_socket(plain, server_side=True) as inside,
        socket.create_connection((HOST, to_port)) as outside,
    ):
        back = threading.Thread(target=_forward, args=(outside, inside), daemon=True)
        back.start()
        _forward(inside, outside)
        back.join(5.0)


def _forward(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
