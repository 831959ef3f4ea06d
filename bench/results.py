"""Results: the figures of a run, with the commit and the machine, as a file of JSON."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.bars import Bar
from bench.figures import Figure

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "bench" / "results"
SHOWN = FOLDER / "shown.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a run took place. `load` is the average of the minute before it: above 0, others were at work."""

    cpu: str
    cores: int
    python: str
    grpcio: str
    load: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run. `commit` ends with `+` if files differ from it; `time` is its begin in ISO 8601."""

    commit: str
    time: str
    machine: Machine
    seconds: float
    figures: tuple[Figure, ...]

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read the text of a file."""
        fields = json.loads(text)
        figures = (Figure(**{**each, "bar": Bar(**each["bar"]) if each["bar"] else None}) for each in fields["figures"])
        return cls(**{**fields, "machine": Machine(**fields["machine"]), "figures": tuple(figures)})

    @property
    def file_name(self) -> str:
        """Return `<time>-<commit>.json`."""
        return f"{self.time[:16].replace(':', '')}-{self.commit.removesuffix('+')}.json"

    def find(self, name: str) -> Figure | None:
        """Return the figure of this name, if the run has it."""
        return next((each for each in self.figures if each.name == name), None)


def begun() -> Result:
    """Return a result without figures, of this commit, machine and time."""
    return Result(
        commit=_commit(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        seconds=0,
        figures=(),
    )


def write(result: Result, folder: Path = FOLDER) -> Path:
    """Write a result into a folder; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / result.file_name
    file.write_text(result.to_json(), encoding="utf-8")
    return file


def read(file: Path) -> Result:
    """Read a result."""
    return Result.from_json(file.read_text(encoding="utf-8"))


def joined(results: Iterable[Result]) -> Result:
    """Return the last result, with the figures of those before it that it lacks.

    Raises:
        ValueError: There are no results, or they are of several commits.
    """
    *earlier, last = results
    if commits := {each.commit for each in earlier} - {last.commit}:
        raise ValueError(f"results of other commits: {', '.join(sorted(commits))}")
    figures = {each.name: each for result in (*earlier, last) for each in result.figures}
    return Result(
        commit=last.commit,
        time=last.time,
        machine=last.machine,
        seconds=sum(each.seconds for each in (*earlier, last)),
        figures=tuple(figures.values()),
    )


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def _machine() -> Machine:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return Machine(
        cpu=names[0] if names else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        grpcio=version("grpcio"),
        load=round(os.getloadavg()[0], 1),
    )
