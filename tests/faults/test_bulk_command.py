"""A million users of `gatekeeper bulk-evaluate`: killed three times or in one go, the same bytes."""

import filecmp
from pathlib import Path

import pytest

from tests.support.bulk_runs import BulkRun
from tests.support.processes import serving

USERS = 1_000_000


@pytest.mark.timeout(3_600)
def test_a_million_users_of_a_run_that_is_killed_are_the_same_bytes(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--demo") as gatekeeper:
        run = BulkRun(folder=tmp_path, users=USERS, port=gatekeeper.port)
        whole, resumed = tmp_path / "whole.csv", tmp_path / "resumed.csv"
        run.finish(whole)

        done = [run.kill(resumed, beyond=beyond) for beyond in (-1, 300_000, 700_000)]
        printed = run.finish(resumed)

    assert done == sorted(done)
    assert printed.startswith(f"evaluated {USERS} users at revision ")
    assert filecmp.cmp(whole, resumed, shallow=False)
