"""A shell that commands of pages are pasted into."""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.support.waiting import eventually

BIN = Path(sys.executable).parent
"""The directory of the `gatekeeper` command of this checkout, and of what is installed next to it."""

# No step of a page takes longer, on a busy machine.
TIMEOUT_S = 240.0
# The shell ends at the first command that fails, and hands on what was exported.
_SCRIPT = "set -euo pipefail\n{script}\nenv --null >&{into}\n"
_SERVE = re.compile(r"gatekeeper serve\s*$")
_SERVING = '"event": "serving"'


class Shell:
    """Runs scripts one after the other; what one exports, later ones have."""

    def __init__(self, environment: Mapping[str, str], *, folder: Path = Path("/")) -> None:
        self.environment = {"LC_ALL": "C.UTF-8", **environment}
        self._folder = folder

    def run(self, script: str, *, launcher: Sequence[str] = ()) -> tuple[int, str]:
        """Run a script, by a launcher such as `processes.under`; returns its exit code and what it printed."""
        # Into files: a server that the script starts would keep a pipe open.
        with tempfile.TemporaryFile("w+") as exported, tempfile.TemporaryFile("w+") as printed:
            whole = _SCRIPT.format(script=script, into=exported.fileno())
            code = subprocess.run(
                [*launcher, "bash", "-c", whole],
                pass_fds=[exported.fileno()],
                timeout=TIMEOUT_S,
                check=False,
                **self._streams(printed),
            ).returncode
            printed.seek(0)
            if code == 0:
                self._keep(exported)
            return code, printed.read()

    def pastes(self, script: str) -> str:
        """Run a script that succeeds; returns what it printed."""
        code, printed = self.run(script)
        assert code == 0, f"{script}\nended with {code}:\n{printed}"
        return printed

    def serves(self, script: str) -> None:
        """Run a script whose last command is a server, until it serves; then it is stopped, and ends without error."""
        assert _SERVE.search(script), script
        with tempfile.TemporaryFile("w+") as printed:
            whole = f"set -euo pipefail\n{_SERVE.sub('exec gatekeeper serve', script)}"
            with subprocess.Popen(["bash", "-c", whole], **self._streams(printed)) as process:
                try:
                    eventually(lambda: process.poll() is not None or _SERVING in _read(printed), timeout_s=TIMEOUT_S)
                    process.send_signal(signal.SIGTERM)
                    code = process.wait(TIMEOUT_S)
                finally:
                    process.kill()
            assert (code, _SERVING in _read(printed)) == (0, True), f"{script}\n{_read(printed)}"

    def _streams(self, printed: IO[str]) -> dict[str, Any]:
        return {
            "env": self.environment,
            "cwd": self._folder,
            "stdin": subprocess.DEVNULL,
            "stdout": printed,
            "stderr": subprocess.STDOUT,
        }

    def _keep(self, exported: IO[str]) -> None:
        exported.seek(0)
        pairs = (pair.partition("=") for pair in exported.read().split("\0") if pair)
        self.environment = {name: value for name, _, value in pairs}


def _read(file: IO[str]) -> str:
    return Path(f"/proc/self/fd/{file.fileno()}").read_text(encoding="utf-8")
