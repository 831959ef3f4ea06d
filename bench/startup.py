"""What starting a client command costs, as a multiple of importing what it cannot do without."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from bench.figures import Effort, Figure, median_figure
from bench.processes import flags_served, log_in

_CLICK = ("-c", "import click")
_STUBS = ("-c", "import click, grpc, gatekeeper_client.v1.{service}_pb2_grpc")
_COMMAND = ("-m", "gatekeeper_grpc")


def measure(effort: Effort) -> Iterator[Figure]:
    """Processor time of `--help` by that of `import click`, and of two calls by that of importing the stubs, too."""
    with flags_served(1) as instance:
        (_, authorization), *_ = log_in(instance)
        environment = {
            "GATEKEEPER_SERVER": f"127.0.0.1:{instance.port}",
            "GATEKEEPER_TOKEN": str(authorization).removeprefix("Bearer "),
        }
        for name, arguments, least in (
            ("help", ("--help",), _CLICK),
            ("evaluate", ("evaluate", "alice"), _with_stubs("evaluation_service")),
            ("list", ("flags", "list"), _with_stubs("admin_service")),
        ):
            rounds = [_round((*_COMMAND, *arguments), least, environment) for _ in range(effort.rounds)]
            what = " ".join(arguments)
            yield median_figure(
                f"startup.{name}", f"CPU of `{what}` by its imports", "x", [cost[0] / cost[1] for cost in rounds]
            )
            yield median_figure(f"startup.{name}.cpu", f"CPU of `{what}`", "ms", [1e3 * cost[0] for cost in rounds])


def _with_stubs(service: str) -> Sequence[str]:
    return [word.format(service=service) for word in _STUBS]


def _round(command: Sequence[str], least: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Return the processor time in seconds of a command, and of its least imports before and after it."""
    before, found, after = (_cpu_s(each, environment) for each in (least, command, least))
    return found, (before + after) / 2


def _cpu_s(arguments: Sequence[str], environment: Mapping[str, str]) -> float:
    process = subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime
