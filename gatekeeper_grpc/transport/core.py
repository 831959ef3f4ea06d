"""The C core under grpcio: what it reads from the environment once, and what it writes to standard error.

`grpc` must not be imported before these functions were called, so this module does not import it.
"""

import ctypes
import os
import re
import threading
import time
from collections import Counter
from enum import StrEnum
from typing import Final

import structlog

_log = structlog.get_logger(__name__)

_LINE = re.compile(r"(?P<level>[IWEF])\d{4} \S+ +\d+ (?P<source>[\w.]+:\d+)\] (?P<message>.*)")
_FAILED_HANDSHAKE = re.compile(r"Handshake failed with .*?OPENSSL_internal:(?P<reason>\w+)")
_METHODS: Final = {"I": "info", "W": "warning"}
_REPEAT_AFTER_S = 60.0
_MAX_REMEMBERED = 256
_LINE_BUFFERED = 1  # stdio.h
_BUFFER_BYTES = 4_096


class HandshakeFailure(StrEnum):
    """Why a TLS handshake failed, as far as the core tells."""

    NO_TLS = "no_tls"
    """The client sent something that is no TLS, such as plaintext HTTP/2."""
    TOO_OLD = "too_old"
    """The client speaks no version, or no cipher, that the server accepts."""
    NO_CERTIFICATE = "no_certificate"
    """The client has sent no certificate, and must."""
    BAD_CERTIFICATE = "bad_certificate"
    """The client's certificate is not of GATEKEEPER_TLS_CLIENT_CA_FILE, or not valid now."""
    REFUSED_BY_CLIENT = "refused_by_client"
    """The client has refused, mostly because it does not trust the certificate of the server."""
    OTHER = "other"


_CAUSES: Final = {
    "WRONG_VERSION_NUMBER": HandshakeFailure.NO_TLS,
    "HTTP_REQUEST": HandshakeFailure.NO_TLS,
    "HTTPS_PROXY_REQUEST": HandshakeFailure.NO_TLS,
    "NO_SHARED_CIPHER": HandshakeFailure.TOO_OLD,
    "UNSUPPORTED_PROTOCOL": HandshakeFailure.TOO_OLD,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": HandshakeFailure.NO_CERTIFICATE,
    "CERTIFICATE_VERIFY_FAILED": HandshakeFailure.BAD_CERTIFICATE,
    # An alert of OpenSSL: it is not encrypted, and the core, which expects encryption, cannot read it.
    "BAD_PACKET_LENGTH": HandshakeFailure.REFUSED_BY_CLIENT,
}


def refuse_tls_1_2() -> None:
    """Have every server of this process speak TLS 1.3 alone.

    grpcio has no option for versions. The variable has the ciphers of TLS 1.2, and this one needs a key that no server
    of ours has, so a client of TLS 1.2 shares none.
    """
    os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-AES128-CBC-SHA"


class CoreLog:
    """Reads what the core writes to standard error: it counts failed handshakes, and passes the other lines to our log.

    The core writes a line for each failed handshake. A stranger could fill a disk with them.
    """

    def __init__(self) -> None:
        self.failed_handshakes: Counter[HandshakeFailure] = Counter()
        """By cause; only the reading thread writes it."""
        self._logged_at: dict[str, float] = {}

    def start(self) -> None:
        """Read from now on, on a thread that sleeps while there is nothing. With another C library than glibc, drop it.

        Only the stream `stderr` of the C library is replaced. The descriptor stays for everybody else: our log, the
        stacks of a crash, child processes. If an operator has set GRPC_VERBOSITY, nothing is replaced: of a crash of
        the core, the thread may not read the last line in time.
        """
        if "GRPC_VERBOSITY" in os.environ:
            return
        try:
            stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
        except ValueError:
            os.environ["GRPC_VERBOSITY"] = "ERROR"
            return
        read, write = os.pipe()
        os.set_blocking(write, False)  # Rather lose a line than hold up a thread of the core.
        stderr.value = _stream(write)
        threading.Thread(target=self._read, args=(read,), name="gatekeeper-core_log", daemon=True).start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, errors="replace") as lines:
            for line in lines:
                self.take(line.rstrip("\n"))

    def take(self, line: str) -> None:
        """Count a failed handshake; log any other line, the same one at most once a minute."""
        if failed := _FAILED_HANDSHAKE.search(line):
            self.failed_handshakes[_cause(failed["reason"])] += 1
            return
        found = _LINE.fullmatch(line)
        source, message = (found["source"], found["message"]) if found else ("", line)
        if self._is_new(source or message):
            getattr(_log, _METHODS.get(found["level"] if found else "", "error"))("grpc_core", message=message)

    def _is_new(self, source: str) -> bool:
        now, logged_at = time.monotonic(), self._logged_at.get(source)
        if logged_at is not None and now - logged_at < _REPEAT_AFTER_S:
            return False
        if len(self._logged_at) >= _MAX_REMEMBERED:
            self._logged_at.clear()
        self._logged_at[source] = now
        return True


CORE_LOG: Final = CoreLog()
"""That of the process."""


def _cause(reason: str) -> HandshakeFailure:
    if "_ALERT_" in reason:
        return HandshakeFailure.REFUSED_BY_CLIENT
    return _CAUSES.get(reason, HandshakeFailure.OTHER)


def _stream(descriptor: int) -> int:
    """Return a stream of the C library on a descriptor, which writes each line at its end."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fdopen.argtypes, libc.fdopen.restype = (ctypes.c_int, ctypes.c_char_p), ctypes.c_void_p
    libc.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)
    stream: int = libc.fdopen(descriptor, b"w")
    libc.setvbuf(stream, None, _LINE_BUFFERED, _BUFFER_BYTES)
    return stream
