"""Clients as we recommend them, in Go, Java and Node: programs that call until they are told to stop.

Each is in `tests/faults/clients/`, and is built into the sample of its language, whose service config it uses. It reads
the variables of `Programs`, calls until its standard input ends, and then goes on until its watch has heard of its own
last change. It prints its `Figures` as a line of JSON every quarter of a second, and at the end.
"""

import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.recommended import Figures, flag_of
from tests.support.processes import TIMEOUT_S
from tests.support.samples import PROTOS, go_sample, java_classes, node_sample, run
from tests.support.tls import CertificateFolder

_SOURCES = Path(__file__).parent / "clients"
# Two compilers and a collector of garbage of its own would take the cores from the servers.
_SMALL_JVM = ("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

Commands = Mapping[str, Sequence[Any]]
"""How each program is started, by its language."""


def build(folder: Path) -> Commands:
    """Build all programs in a folder."""
    go = go_sample(folder, _SOURCES / "load_test.go")
    run("go", "test", "-c", "-o", "load", ".", cwd=go)
    java = java_classes(folder, _SOURCES / "Load.java")
    node = node_sample(folder, _SOURCES / "load.js")
    return {
        "Go": [go / "load"],
        "Java": ["java", *_SMALL_JVM, "-cp", java, "Load"],
        "Node": ["node", node / "load.js"],
    }


class Program:
    """One of the programs, from `start` to `close`.

    Args:
        language: Names it and its flag.
        command: See `build`.
        ports: Of the instances.
        token: Of an editor.
        certificates: For TLS. None: plaintext, in which evaluations have no retry policy.
    """

    def __init__(
        self,
        language: str,
        command: Sequence[Any],
        ports: Sequence[int],
        token: str,
        *,
        certificates: CertificateFolder | None,
    ) -> None:
        self.language = language
        self.figures = Figures()
        self._command = command
        self._variables = {
            "PROTOS": str(PROTOS),
            "ADDRESSES": ",".join(f"127.0.0.1:{port}" for port in ports),
            "TOKEN": token,
            "FLAG": flag_of(language),
            **({"CA_FILE": str(certificates.issuer_file)} if certificates else {}),
        }
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, name=f"figures-{language}")

    def start(self) -> None:
        """Begin; it calls as soon as its language has started."""
        variables = {**os.environ, **self._variables}
        self._process = subprocess.Popen(
            self._command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader.start()

    def close(self) -> None:
        """End, and wait for the last answers."""
        assert self._process
        assert self._process.stdin
        self._process.stdin.close()
        try:
            assert self._process.wait(2 * TIMEOUT_S) == 0, f"the load in {self.language} failed"
        finally:
            self._process.kill()
            self._reader.join()

    def _read(self) -> None:
        assert self._process
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                self.figures = _figures(json.loads(line))


def _figures(printed: Mapping[str, Any]) -> Figures:
    return Figures(**{name: _counted(value) for name, value in printed.items()})


def _counted(value: Any) -> Any:
    """A count, or counts; for some languages every number of JSON is a float."""
    return Counter(dict(zip(value, map(int, value.values()), strict=True))) if isinstance(value, dict) else int(value)
