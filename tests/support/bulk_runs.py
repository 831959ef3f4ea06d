"""Runs of `gatekeeper bulk-evaluate` that are killed, and gone on with."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import START_TIMEOUT_S
from tests.support.waiting import eventually

LONGEST_S = 1_800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkRun:
    """A command for a file of so many users, which it makes, and for the server at a port."""

    folder: Path
    users: int
    port: int

    def __post_init__(self) -> None:
        lines = (f"user-{n},{('pro', 'free', '')[n % 3]},{n % 90}\n" for n in range(self.users))
        with self._source.open("w", encoding="utf-8") as file:
            file.write("user_id,plan,age\n")
            file.writelines(lines)

    @property
    def _source(self) -> Path:
        return self.folder / "users.csv"

    def start(self, results: Path) -> subprocess.Popen[str]:
        """Begin, or go on."""
        return subprocess.Popen(
            [sys.executable, "-m", "gatekeeper_grpc", "bulk-evaluate", str(self._source), "--to", str(results)],
            env={**os.environ, "GATEKEEPER_SERVER": f"127.0.0.1:{self.port}", "XDG_CONFIG_HOME": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, results: Path) -> str:
        """Run it to its end; returns what it has printed."""
        with self.start(results) as process:
            printed, complaint = process.communicate(timeout=LONGEST_S)
        assert (process.returncode, complaint) == (0, "")
        return printed

    def kill(self, results: Path, *, beyond: int) -> int:
        """Run it until more than `beyond` users are known to be done and some more are written, and end it by SIGKILL.

        Returns:
            How many are known to be done.
        """
        with self.start(results) as process:
            assert eventually(lambda: _is_torn(results, beyond) or process.poll() is not None, timeout_s=LONGEST_S)
            process.kill()
            said = process.communicate(timeout=START_TIMEOUT_S)
        assert process.returncode == -9, f"it was over too soon, with {process.returncode}: {said}"
        return _kept(results)["users"]


def _is_torn(results: Path, beyond: int) -> bool:
    kept = _kept(results)
    return kept["users"] > beyond and results.exists() and results.stat().st_size > kept["size"]


def _kept(results: Path) -> dict[str, int]:
    try:
        document: dict[str, int] = json.loads(results.with_name(f"{results.name}.progress").read_text())
    except FileNotFoundError:
        return {"users": 0, "size": 0}
    return document
