"""A real Prometheus, with the configuration that we ship but for its targets and intervals."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.deploy.queries import ROOT, RULES
from tests.support.processes import Output, stop

_PROMETHEUS = ROOT / ".venv" / "bin" / "prometheus"
_CONFIGURATION = ROOT / "deploy" / "prometheus" / "prometheus.yml"


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    port: int

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API answers.

        Raises:
            urllib.error.HTTPError: It refuses, such as a query that it cannot read.
        """
        with urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}", timeout=60) as response:
            return json.load(response)["data"]

    def values(self, query: str) -> list[float]:
        """What a query finds now, without what is no number."""
        found = [float(each["value"][1]) for each in self.ask("query", query=query)["result"]]
        return [value for value in found if value == value]  # noqa: PLR0124 # NaN is not.

    def names(self) -> set[str]:
        """The names of all series that it has."""
        return set(self.ask("label/__name__/values"))


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, int], *, every_s: int = 5) -> Iterator[Prometheus]:
    """Run a Prometheus for the length of the block.

    Args:
        folder: For its files.
        targets: Operations ports by what `instance` is to be.
        every_s: How often it scrapes them and evaluates the rules, and how long it waits for an answer at most.
    """
    folder.mkdir()
    with subprocess.Popen(
        [_PROMETHEUS, *_options(folder, targets, every_s)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        try:
            log = Output(process.stderr)
            port = log.first(_port_in)
            log.first(lambda line: "ready to receive web requests" in line)
            yield Prometheus(port)
        finally:
            stop(process)


def _options(folder: Path, targets: Mapping[str, int], every_s: int) -> Iterator[str]:
    configuration = yaml.safe_load(_CONFIGURATION.read_text(encoding="utf-8"))
    configuration["global"] = {"scrape_interval": f"{every_s}s", "evaluation_interval": f"{every_s}s"}
    configuration["rule_files"] = [str(RULES)]
    (job,) = configuration["scrape_configs"]
    job["static_configs"] = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}} for name, port in targets.items()
    ]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    yield from (f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", "--web.listen-address=127.0.0.1:0")


def _port_in(line: str) -> int | None:
    _, found, address = line.partition('msg="Listening on" address=127.0.0.1:')
    return int(address) if found else None
