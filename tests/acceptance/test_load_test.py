"""`make loadtest`, shortened to some seconds: what it prints, and how it ends."""

import re
import subprocess
import sys
from pathlib import Path

from bench.loadtest import STAGES
from tests.support.processes import START_TIMEOUT_S, serving


def load_test(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.loadtest", "--scale", "0.005", "--users", "4", "--rate", "5", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)


def test_a_load_test_reports_every_stage_and_ends_with_its_verdict() -> None:
    done = load_test()

    assert [stage.name for stage in STAGES if not re.search(rf"{stage.name} .*\d", done.stdout)] == []
    assert "failed: 0.000%" in done.stdout, done.stdout + done.stderr
    # Whether a busy machine keeps the limit of latency is not asserted.
    assert done.returncode == (0 if "kept: p99 < 50 ms" in done.stdout else 1), done.stdout + done.stderr


def test_a_load_test_fails_if_the_server_refuses_its_calls(tmp_path: Path) -> None:
    with serving(tmp_path, GATEKEEPER_EVALUATION_ACCESS="key") as server:
        done = load_test("--server", f"127.0.0.1:{server.port}")

    assert "failed: 100.000% {'UNAUTHENTICATED':" in done.stdout, done.stdout + done.stderr
    assert "MISSED" in done.stdout
    assert done.returncode == 1
