"""The load of `bench.peers`, by h2load, which decodes nothing: a cheaper client than any of gRPC or HTTP in Python.

One process of h2load sends one body, so that several of them stand for several users at once. A GET carries its user in
the path, and one process then goes through all its paths in turn.
"""

import os
import re
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.h2load import PROGRAM
from bench.peers.checks import WrongAnswer
from bench.peers.clients import Address
from bench.peers.protocols import Call

# Calls in flight on each connection; over HTTP/1.1 there is one, so that it takes as many connections more.
CALLS_IN_FLIGHT = 2
PROCESSES = 4


# A call of gRPC that was refused has no body. The size of some answers varies by their times.
LEAST_DATA = 0.95


class Load(NamedTuple):
    """What a process of the generator counted: answers, and the bytes of their bodies."""

    answers: int
    data_bytes: int

    def check_data(self, answer: bytes) -> None:
        """Check that the answers were as long as `answer`, a message of gRPC.

        Raises:
            WrongAnswer: some were refused.
        """
        if self.data_bytes < LEAST_DATA * self.answers * len(framed(answer)):
            raise WrongAnswer(f"{self.answers} answers of {len(answer)} bytes have {self.data_bytes} bytes of data")


def framed(body: bytes) -> bytes:
    """Return a message as gRPC sends it."""
    return b"\0" + struct.pack(">I", len(body)) + body


def options(connections: int, headers: Mapping[str, str], *, over_grpc: bool) -> list[str]:
    """Return the options of one process that has this share of the connections."""
    if over_grpc:
        headers = {"content-type": "application/grpc", "te": "trailers"}
    shape = [f"-c{connections}", f"-m{CALLS_IN_FLIGHT}"]
    if not over_grpc:
        shape = ["--h1", f"-c{connections * CALLS_IN_FLIGHT}"]
    return [*shape, *(item for name, value in headers.items() for item in ("-H", f"{name}: {value}"))]


def counted(printed: str) -> Load:
    """Read what h2load printed.

    Raises:
        WrongAnswer: an answer had a status that is not 2xx, or a connection failed.
    """
    requests = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", printed)
    statuses = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", printed)
    data = re.search(r"\((\d+)\) data", printed)
    if requests is None or statuses is None or data is None:
        raise WrongAnswer(f"h2load printed: {printed}")
    if any(int(number) for number in (requests[2], requests[3], *statuses.groups()[1:])):
        raise WrongAnswer(f"{requests[0]}; {statuses[0]}")
    return Load(int(requests[1]), int(data[1]))


class Generator:
    """Loads one server, with the connections that all its processes share."""

    def __init__(
        self, address: Address, folder: Path, headers: Mapping[str, str], *, connections: int, over_grpc: bool
    ) -> None:
        self._address = address
        self._folder = folder
        self._options = options(max(connections // PROCESSES, 1), headers, over_grpc=over_grpc)
        self._over_grpc = over_grpc

    def start(self, calls: Sequence[Call]) -> list[subprocess.Popen[str]]:
        """Start to make calls for one second, each process its share of `calls` in turn."""
        return [self._started(number, calls[number::PROCESSES]) for number in range(PROCESSES)]

    def _started(self, number: int, calls: Sequence[Call]) -> subprocess.Popen[str]:
        libraries = next((PROGRAM / "usr" / "lib").glob("*/libev.so.4")).parent
        environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
        command = [str(PROGRAM / "usr" / "bin" / "h2load"), "-t1", "-D1", *self._options]
        command += self._targets(calls, self._folder / str(number))
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _targets(self, calls: Sequence[Call], file: Path) -> list[str]:
        base = f"http://{self._address.authority}"
        first = calls[0]
        if first.body is None:
            file.write_text("".join(f"{base}{call.path}\n" for call in calls))
            return ["-i", str(file)]
        file.write_bytes(framed(first.body) if self._over_grpc else first.body)
        return ["-d", str(file), f"{base}{first.path}"]
