"""SIGTERM during a start ends the process in order: no death by a signal, no hang, nothing left behind.

`SIGTERMS=2000 .venv/bin/pytest tests/faults/test_sigterm.py` sends 2,000 signals; without the variable it sends 30.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.postgres import running
from tests.faults.report import Report
from tests.support.processes import KEYS, start
from tests.support.waiting import eventually

SIGTERMS = int(os.environ.get("SIGTERMS", "30"))
SEED = int(os.environ.get("SEED", "1"))
AT_ONCE = 8
BUSY_LOOPS = 8
# A start on a quiet machine takes about a second.
WITHIN_S = 3.0
# Most of it is for importing, by eight processes at once on a machine that is busy.
TIMEOUT_S = 180.0
LIMIT_S = 300 + 10 * SIGTERMS
SPIN = "import time; end = time.monotonic() + float(__import__('sys').argv[1])\nwhile time.monotonic() < end: pass"
QUICK = {"GATEKEEPER_GRACE_S": "1", "PYTHONFAULTHANDLER": "1"}
TWO_WORKERS = {"GATEKEEPER_WORKERS": "2"}
INTERRUPTED, STOPPED, COULD_NOT_START = 130, 0, 1

pytestmark = [pytest.mark.timeout(LIMIT_S), pytest.mark.promise("C4")]


@dataclass(frozen=True, slots=True)
class Start:
    """One way to start the server."""

    name: str
    settings: dict[str, str]
    in_order: frozenset[int] = frozenset({INTERRUPTED, STOPPED})
    """Exit codes of an orderly end."""


@dataclass(frozen=True, slots=True)
class End:
    """How a start that was told to end did end."""

    start: Start
    after_s: float
    code: int
    log: str


@pytest.fixture
def busy_machine() -> Iterator[None]:
    """Busy loops that end by themselves, should nobody end them."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", SPIN, str(LIMIT_S)]) for _ in range(BUSY_LOOPS)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.fixture
def starts(data_dir: Path) -> Iterator[list[Start]]:
    """A database that many share, one that accepts connections and never answers, and an embedded one."""
    with (
        running(data_dir, max_connections="500", fsync="off") as postgres,
        socket.create_server(("127.0.0.1", 0), backlog=4_096) as silent,
    ):
        shared = {**KEYS, "DATABASE_URL": postgres.dsn}
        mute = {**KEYS, "DATABASE_URL": f"postgresql://127.0.0.1:{silent.getsockname()[1]}/gatekeeper"}
        gives_up = frozenset({INTERRUPTED, COULD_NOT_START})
        yield [
            Start("two workers, no answer from the database", {**mute, **TWO_WORKERS}, gives_up),
            Start("two workers", {**shared, **TWO_WORKERS}),
            Start("one process, no answer from the database", mute, gives_up),
            Start("one process", shared),
            Start("one process, embedded database", {}),
            Start("two workers, embedded database", TWO_WORKERS),
        ]


def end_at(moment_s: float, chosen: Start, data_dir: Path) -> End:
    """Start, and send SIGTERM that long after the process can handle it."""
    with start("serve", data_dir=data_dir, **QUICK, **chosen.settings) as process:
        try:
            # Before that the kernel ends it, as no line of the server has run yet.
            assert eventually(lambda: handles_sigterm(process.pid), timeout_s=TIMEOUT_S)
            time.sleep(moment_s)
            children = child_pids(process.pid)
            process.terminate()
            log = ended(process)
        finally:
            process.kill()
    assert eventually(lambda: not any(map(is_running, children)), timeout_s=TIMEOUT_S)
    return End(chosen, moment_s, process.returncode, log)


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for the end; of a process that hangs, get the stacks of its threads."""
    try:
        return process.communicate(timeout=TIMEOUT_S)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        return process.communicate(timeout=TIMEOUT_S)[1]


def handles_sigterm(pid: int) -> bool:
    (caught,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << signal.SIGTERM - 1)


def child_pids(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_sigterm_during_a_start_ends_it_in_order(
    busy_machine: None, starts: list[Start], tmp_path: Path, report: Report
) -> None:
    dice = random.Random(SEED)
    plan = [(dice.uniform(0, WITHIN_S), starts[i % len(starts)], tmp_path / f"start-{i}") for i in range(SIGTERMS)]
    with report.fault("C4", f"SIGTERM at a random moment of a start, {BUSY_LOOPS} busy loops") as row:
        with ThreadPoolExecutor(AT_ONCE) as executor:
            ends = [*executor.map(end_at, *zip(*plan, strict=True))]
        codes = Counter(end.code for end in ends)
        row.also = ", ".join(f"{number} ended with {code}" for code, number in codes.items())

    wrong = [end for end in ends if end.code not in end.start.in_order]
    assert not wrong, "\n\n".join(f"{end.start.name}, {end.after_s:.3f} s: {end.code}\n{end.log}" for end in wrong)
