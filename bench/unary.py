"""EvaluateFlags compared with an empty call: `make bench-unary`, or `python -m bench.unary [rounds] [flags...]`.

For each number of flags, three servers take turns second by second: Gatekeeper as it is, one whose workers answer all
calls (`GATEKEEPER_ANSWER_AT_ONCE=false`), and a plain handler of grpcio with an empty answer (`bench.empty`). The
generator is h2load with 8 connections and 2 calls in flight on each, which decodes nothing: it is cheaper than any gRPC
client. It takes a refused call for a success, so a round counts only if the server's own count of OK answers rose by
as much. Compare ratios: all figures are medians of the rounds.
"""

import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from bench.evaluate import create_flags
from bench.processes import Instance, serving
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from tests.support.ports import free_port

METHOD = "/gatekeeper.v1.EvaluationService/EvaluateFlags"
H2LOAD = Path(sys.prefix) / "debian" / "h2load"
ROUNDS, FLAGS = 9, (1, 20, 200, 1_000)
EMPTY = "empty"
SERVERS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "as it is": (("gatekeeper_grpc", "serve"), {}),
    "by workers": (("gatekeeper_grpc", "serve"), {"GATEKEEPER_ANSWER_AT_ONCE": "false"}),
    EMPTY: (("bench.empty",), {}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server, and where it counts its calls."""

    instance: Instance
    ops_port: int | None

    def answered(self) -> int | None:
        """Return how many calls it has answered with OK; None if it does not count."""
        if self.ops_port is None:
            return None
        with urlopen(f"http://127.0.0.1:{self.ops_port}/metrics") as response:
            text = response.read().decode()
        pattern = rf'gatekeeper_rpc_duration_seconds_count\{{code="OK",method="{re.escape(METHOD)}"\}} (\S+)'
        found = re.search(pattern, text)
        return int(float(found[1])) if found else 0

    def cpu_s(self) -> float:
        """Return the processor time of its process."""
        fields = Path(f"/proc/{self.instance.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Round(NamedTuple):
    """Calls a second, and microseconds of processor time for each."""

    rate: float
    cpu_us: float


def load(port: int, body: Path) -> int:
    """Call for a second; return how many calls were answered."""
    libraries = next((H2LOAD / "usr" / "lib").glob("*/libev.so.4")).parent
    options = [
        "-t1",
        "-c8",
        "-m2",
        "-D1",
        "-d",
        str(body),
        "-H",
        "content-type: application/grpc",
        "-H",
        "te: trailers",
    ]
    command = [str(H2LOAD / "usr" / "bin" / "h2load"), *options, f"http://127.0.0.1:{port}{METHOD}"]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", printed)
    assert found is not None, printed
    assert found[2] == found[3] == "0", printed
    return int(found[1])


def measure(server: Server, body: Path) -> Round | None:
    """Measure one round; None if the server did not answer all with OK."""
    before, cpu_s = server.answered(), server.cpu_s()
    calls = load(server.instance.port, body)
    cpu_s, after = server.cpu_s() - cpu_s, server.answered()
    # What is in flight at the end of the second, the generator does not count: 16 calls at most.
    if before is not None and after is not None and not 0 <= after - before - calls <= 16:
        return None
    return Round(rate=calls, cpu_us=cpu_s / calls * 1e6)


def compare(flags: int, rounds: int) -> None:
    """Measure and print, for one number of flags."""
    request = EvaluateFlagsRequest(context=EvaluationContext(user_id="user-1")).SerializeToString()
    measured: dict[str, list[Round | None]] = {name: [] for name in SERVERS}
    with ExitStack() as stack:
        body = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "body"
        body.write_bytes(b"\0" + struct.pack(">I", len(request)) + request)
        servers = {name: _serve(stack, name, flags) for name in SERVERS}
        for server in servers.values():
            measure(server, body)
        for _ in range(rounds):
            for name, server in servers.items():
                measured[name].append(measure(server, body))
    floor = measured[EMPTY]
    for name, all_rounds in measured.items():
        pairs = [(own, empty) for own, empty in zip(all_rounds, floor, strict=True) if own and empty]
        ratios = sorted(own.rate / empty.rate for own, empty in pairs)
        rate, cpu_us = (statistics.median(own[n] for own, _ in pairs) for n in range(2))
        cpu_ratio = statistics.median(own.cpu_us / empty.cpu_us for own, empty in pairs)
        print(
            f"  {flags:>5} flags  {name:<11} {rate:>6,.0f} calls/s  {statistics.median(ratios):.2f} of empty"
            f" ({ratios[0]:.2f} to {ratios[-1]:.2f})  {cpu_us:>4.0f} us of CPU a call, {cpu_ratio:.2f} of empty"
            f"  ({len(pairs)} rounds)",
            flush=True,
        )


def _serve(stack: ExitStack, name: str, flags: int) -> Server:
    module, settings = SERVERS[name]
    ops_port = None if name == EMPTY else free_port()
    if ops_port is not None:
        settings = {**settings, "GATEKEEPER_OPS_LISTEN": f"127.0.0.1:{ops_port}"}
    data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    instance = stack.enter_context(serving(data_dir, module, **settings))
    if name != EMPTY:
        create_flags(instance, flags)
    return Server(instance=instance, ops_port=ops_port)


def main(rounds: int = ROUNDS, *flags: int) -> None:
    """Measure and print."""
    for count in flags or FLAGS:
        compare(count, rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
