"""Unary calls by h2load: 8 connections with 2 calls in flight each, the answers unread.

It is cheaper than any gRPC client, so that it takes little of the cores that it shares with the server. It takes a
refused call for a success: compare with what the server counted.
"""

import os
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import EVALUATE_FLAGS, Instance

PROGRAM = Path(sys.prefix) / "debian" / "h2load"
CONNECTIONS = 8
IN_FLIGHT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Calls with one message, as fast as they are answered, or at a rate.

    Attributes:
        folder: For files.
        message: What each call sends, serialised.
        metadata: What each call sends, too.
    """

    folder: Path
    message: bytes
    metadata: Sequence[tuple[str, str]] = ()

    def rate(self, instance: Instance, calls: int) -> float:
        """Make so many calls; returns the calls a second."""
        printed = self._run(instance, calls)
        found = re.search(r"finished in \S+, (\S+) req/s", printed)
        assert found is not None, printed
        return float(found[1])

    def latencies_ms(self, instance: Instance, calls: int, *, rate: float) -> list[float]:
        """Make so many calls at a rate; returns the latency of each, the way to the server included."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        self._run(instance, calls, f"--rps={rate / CONNECTIONS:.3f}", f"--log-file={log}")
        return [int(line.split("\t")[2]) / 1_000 for line in log.read_text().splitlines()]

    def _run(self, instance: Instance, calls: int, *options: str) -> str:
        command = [str(PROGRAM / "usr" / "bin" / "h2load"), *self._options(calls), *options, _url(instance)]
        printed = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True).stdout
        assert f" {calls} succeeded, 0 failed, 0 errored, 0 timeout" in printed, printed
        return printed

    def _options(self, calls: int) -> list[str]:
        body = self.folder / "body"
        body.write_bytes(b"\0" + struct.pack(">I", len(self.message)) + self.message)
        headers = (("content-type", "application/grpc"), ("te", "trailers"), *self.metadata)
        described = [part for name, value in headers for part in ("-H", f"{name}: {value}")]
        # More connections than calls are refused.
        clients = min(CONNECTIONS, calls)
        return ["-t1", f"-c{clients}", f"-m{IN_FLIGHT}", f"-n{calls}", "-d", str(body), *described]


def _url(instance: Instance) -> str:
    scheme = "http" if instance.certificates is None else "https"
    return f"{scheme}://127.0.0.1:{instance.port}{EVALUATE_FLAGS}"


def _environment() -> dict[str, str]:
    libraries = next((PROGRAM / "usr" / "lib").glob("*/libev.so.4")).parent
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
