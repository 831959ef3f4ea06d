"""`gatekeeper bulk-evaluate` that is killed: the same command goes on. tests/faults/ has a million users."""

import filecmp
from pathlib import Path

from tests.support.bulk_runs import BulkRun
from tests.support.processes import Gatekeeper

USERS = 60_000


def test_a_killed_bulk_run_goes_on_to_the_same_bytes(gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    """Killed before anything is known to be done, and while some is."""
    run = BulkRun(folder=tmp_path, users=USERS, port=gatekeeper.port)
    whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
    run.finish(whole)

    done = [run.kill(resumed, beyond=beyond) for beyond in (-1, 0)]
    printed = run.finish(resumed)

    assert done == sorted(done)
    assert printed.startswith(f"evaluated {USERS} users at revision ")
    assert filecmp.cmp(whole, resumed, shallow=False)
    assert sorted(file.name for file in tmp_path.glob("*.csv*")) == ["resumed.csv", "users.csv", "whole.csv"]


def test_twin_without_what_it_keeps_a_killed_run_is_refused(gatekeeper: Gatekeeper, tmp_path: Path) -> None:
    run = BulkRun(folder=tmp_path, users=USERS, port=gatekeeper.port)
    results = tmp_path / "results.csv"
    run.kill(results, beyond=0)
    (tmp_path / "results.csv.progress").unlink()

    with run.start(results) as process:
        _, complaint = process.communicate(timeout=60)

    assert (process.returncode, "is not of an interrupted run" in complaint) == (2, True)
