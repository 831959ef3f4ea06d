"""A server that serves no call: few threads, and a crash that says where every thread was."""

import re
import signal
from pathlib import Path
from urllib.request import urlopen

from tests.support.processes import TIMEOUT_S, serving
from tests.support.waiting import eventually

MAX_THREADS = 16


def python_threads(ops_port: int) -> int:
    """Threads of the process, as `/metrics` counts them, without the one that serves `/metrics`."""
    with urlopen(f"http://127.0.0.1:{ops_port}/metrics", timeout=TIMEOUT_S) as response:
        metrics = response.read().decode()
    (count,) = re.findall(r"^gatekeeper_threads (\S+)$", metrics, re.MULTILINE)
    return int(float(count)) - 1


def test_a_started_server_has_at_most_16_threads(tmp_path: Path) -> None:
    """The embedded database included. The first runs of background tasks have threads for a moment."""
    with serving(tmp_path) as gatekeeper:
        counts: list[int] = []

        def are_few() -> bool:
            counts.append(python_threads(gatekeeper.ops_port))
            return counts[-1] <= MAX_THREADS

        assert eventually(are_few), counts


def test_a_crash_prints_the_stacks_of_all_threads(tmp_path: Path) -> None:
    with serving(tmp_path) as gatekeeper:
        gatekeeper.process.send_signal(signal.SIGSEGV)
        gatekeeper.ends_within(TIMEOUT_S)
        log = gatekeeper.log.whole()

    assert "Fatal Python error: Segmentation fault" in log
    assert log.count("Thread 0x") > 1
