"""The certificate that listeners show, read again and again, so that a new one needs no restart."""

import os
import ssl
from collections.abc import Callable
from itertools import count
from typing import cast

import grpc
import structlog

from gatekeeper_grpc.auth.certificates import Certificate, CertificateFiles
from gatekeeper_grpc.config.settings import Settings, SettingsError

_log = structlog.get_logger(__name__)

CHECK_CERTIFICATE_EVERY_S = 5.0
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class ServerTls:
    """The certificate of all listeners of a process. Thread-safe.

    Args:
        read: Reads and checks it; raises `SettingsError`.
        min_version: "1.2" or "1.3", for HTTP. For gRPC the process decides: `transport/core.py`.

    Raises:
        SettingsError: The certificate cannot be used.
    """

    def __init__(self, read: Callable[[], Certificate], *, min_version: str = "1.3") -> None:
        self._read = read
        self._min_version = _VERSIONS[min_version]
        self.certificate = read()
        self.refused = ""
        """Why the files hold a certificate that is not shown; empty if they do not."""
        self.handshakes = 0
        """How many were begun on gRPC listeners."""
        self._numbers = count(1)
        self._contexts: tuple[Certificate, ssl.SSLContext] | None = None

    @classmethod
    def of(cls, settings: Settings) -> "ServerTls | None":
        """Return that of the settings; None without TLS."""
        files = CertificateFiles.of(settings)
        return None if files is None else cls(files.read, min_version=settings.tls_min_version)

    def check(self) -> None:
        """Read the files; show what they hold from the next connection on, unless it cannot be used."""
        try:
            found = self._read()
        except SettingsError as exc:
            self._keep(str(exc))
            return
        if found != self.certificate or self.refused:
            _log.info("tls_certificate_loaded", not_after=found.not_after.isoformat())
        self.certificate, self.refused = found, ""

    def _keep(self, refused: str) -> None:
        if refused != self.refused:
            _log.error("tls_certificate_refused", error=refused, shown_until=self.certificate.not_after.isoformat())
        self.refused = refused

    def credentials(self, *, for_probes: bool = False) -> grpc.ServerCredentials:
        """Return what a gRPC server listens with.

        Args:
            for_probes: Ask no client for a certificate, even if there is GATEKEEPER_TLS_CLIENT_CA_FILE.
        """
        shown = self.certificate
        asks_clients = shown.client_ca is not None and not for_probes

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Called by grpcio at the begin of each handshake."""
            nonlocal shown
            self.handshakes = next(self._numbers)
            if shown is self.certificate:
                return None
            shown = self.certificate
            return _configuration(shown, asks_clients=asks_clients)

        first = _configuration(shown, asks_clients=asks_clients)
        # Its published type lacks None: the certificate stays.
        fetcher = cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch)
        return grpc.dynamic_ssl_server_credentials(first, fetcher, require_client_authentication=asks_clients)

    def http_context(self) -> ssl.SSLContext:
        """Return what an HTTP server accepts connections with now."""
        shown = self.certificate
        if self._contexts is None or self._contexts[0] is not shown:
            self._contexts = shown, _context(shown, self._min_version)
        return self._contexts[1]


def _configuration(certificate: Certificate, *, asks_clients: bool) -> grpc.ServerCertificateConfiguration:
    roots = certificate.client_ca if asks_clients else None
    return grpc.ssl_server_certificate_configuration([(certificate.key, certificate.chain)], root_certificates=roots)


def _context(certificate: Certificate, min_version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = min_version
    # It loads from files alone. This one is in memory, and holds what was checked.
    with os.fdopen(os.memfd_create("certificate"), "wb", buffering=0) as file:
        file.write(certificate.key + b"\n" + certificate.chain)
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context
