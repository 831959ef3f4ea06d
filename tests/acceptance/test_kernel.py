"""A server says who makes its draws: in the line of its start, and in /metrics."""

from pathlib import Path

import pytest

from gatekeeper_grpc.draws.native import LIBRARY
from tests.support.processes import serving
from tests.support.scrapes import text_of

BUILT = "native" if LIBRARY.exists() else "python"


@pytest.mark.parametrize(("kernel", "drawn_by"), [("auto", BUILT), ("off", "python")])
def test_a_server_says_who_makes_its_draws(data_dir: Path, kernel: str, drawn_by: str) -> None:
    with serving(data_dir, GATEKEEPER_KERNEL=kernel) as server:
        assert server.logged("serving")["kernel"] == drawn_by
        assert f'kernel="{drawn_by}"' in text_of(server.ops_port)


def test_workers_draw_as_their_supervisor_says(data_dir: Path) -> None:
    with serving(data_dir, GATEKEEPER_KERNEL="off", GATEKEEPER_WORKERS="2") as server:
        assert server.logged("serving")["kernel"] == "python"
        assert 'kernel="native"' not in text_of(server.ops_port)
