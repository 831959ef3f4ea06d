"""Memory of an idle connection, in plaintext and with TLS: `python -m bench.connections [count]`.

Starts a server for each, opens 1,000 connections that have made one call, and prints by how much the resident memory of
the server has grown for each of them. What clients have in memory is in this process.
"""

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.processes import serving
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_grpc.lifecycle.limits import raise_open_file_limit
from tests.support.http2 import HEADERS, Http2
from tests.support.tls import CertificateFolder

COUNT = 1_000
# So that what the first connections need once is not counted.
WARM_UP = 200
SETTLE_S = 2.0
_CALL = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
_BODY = EvaluateFlagsRequest(context=EvaluationContext(user_id="alice")).SerializeToString()


def growth_kib(folder: Path, count: int, certificates: CertificateFolder | None) -> float:
    """Return by how many KiB a server grows for each of `count` connections."""
    settings = certificates.variables if certificates else {}
    with serving(folder, **settings) as instance, ExitStack() as stack:

        def connect(number: int) -> None:
            for _ in range(number):
                client = stack.enter_context(Http2.connected(instance.port, certificates=certificates))
                client.send_message(client.open_call(_CALL), _BODY)
                client.receive(HEADERS)
                client.receive(HEADERS)  # The trailers: the call is over.
            time.sleep(SETTLE_S)

        connect(WARM_UP)
        before = instance.rss_kib()
        connect(count)
        return (instance.rss_kib() - before) / count


def main(count: int = COUNT) -> None:
    """Measure and print."""
    raise_open_file_limit()
    with tempfile.TemporaryDirectory(prefix="gatekeeper-bench-") as folder:
        certificates = CertificateFolder(Path(folder))
        for name, shown in (("plaintext", None), ("TLS", certificates)):
            print(f"{name}: {growth_kib(Path(folder) / name, count, shown):.1f} KiB for each of {count:,} connections")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
