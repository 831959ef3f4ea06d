"""Lines of gRPC's core: failed handshakes are counted, all others logged."""

import os
import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from gatekeeper_grpc.transport.core import CoreLog, HandshakeFailure
from tests.support.processes import TIMEOUT_S

FAILED = (
    "I1129 10:18:13.473441   10018 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL:"
    " error:100000b8:SSL routines:OPENSSL_internal:{}: Invalid certificate verification context"
)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("WRONG_VERSION_NUMBER", HandshakeFailure.NO_TLS),
        ("NO_SHARED_CIPHER", HandshakeFailure.TOO_OLD),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", HandshakeFailure.NO_CERTIFICATE),
        ("CERTIFICATE_VERIFY_FAILED", HandshakeFailure.BAD_CERTIFICATE),
        ("TLSV1_ALERT_UNKNOWN_CA", HandshakeFailure.REFUSED_BY_CLIENT),
        ("A_NEW_REASON", HandshakeFailure.OTHER),
    ],
)
def test_failed_handshakes_are_counted_and_not_logged(reason: str, cause: HandshakeFailure) -> None:
    core = CoreLog()
    with capture_logs() as logs:
        for _ in range(3):
            core.take(FAILED.format(reason))

    assert (dict(core.failed_handshakes), logs) == ({cause: 3}, [])


def test_other_lines_are_logged_by_their_level_once_a_minute_each() -> None:
    core = CoreLog()
    with capture_logs() as logs:
        for line in ("W1129 10:18:13.473441   10018 tcp_posix.cc:12] odd", "no line of the core") * 3:
            core.take(line)

    assert [(line["event"], line["log_level"], line["message"]) for line in logs] == [
        ("grpc_core", "warning", "odd"),
        ("grpc_core", "error", "no line of the core"),
    ]


# A line of C code in a process that reads the core's.
WRITE = """
import ctypes, time
from structlog.testing import capture_logs
from gatekeeper_grpc.transport.core import CORE_LOG
with capture_logs() as logs:
    CORE_LOG.start()
    ctypes.CDLL(None).perror(b"of the core")
    deadline = time.monotonic() + {wait_s}
    while not logs and time.monotonic() < deadline:
        time.sleep(0.01)
print(len(logs))
"""


def written(wait_s: float, **environment: str) -> tuple[bool, str]:
    """Write a line as the core does; return whether standard error has it, and how often the log."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE.format(wait_s=wait_s)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    return "of the core" in done.stderr, done.stdout.strip()


def test_what_the_core_writes_goes_to_the_log() -> None:
    assert written(TIMEOUT_S) == (False, "1")


def test_an_operator_who_sets_the_verbosity_sees_it_at_once() -> None:
    assert written(0.0, GRPC_VERBOSITY="ERROR") == (True, "0")
