"""Attackers from 127.0.1.x do not take what victims at 127.0.2.x need, and are told so; loopback is not exempt."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.faults.attacks import BULK, REFLECT
from tests.faults.report import Report
from tests.faults.siege import Siege, siege

pytestmark = pytest.mark.promise("C1")

_TWIN_S = 8.0
UNADMITTED_BYTES = 64 << 20
"""For messages that are not admitted yet."""
OTHER_BYTES = 16 << 20
"""For the interpreter, the allocator and the victims' calls."""


@pytest.fixture
def besieged(tmp_path: Path) -> Iterator[Siege]:
    """A server as it ships."""
    with siege(tmp_path / "data") as started:
        yield started


def sabotaged(tmp_path: Path, sabotage: str) -> AbstractContextManager[Siege]:
    return siege(tmp_path / "data", sabotage=sabotage)


@pytest.mark.parametrize(("path", "name"), [(BULK, "bulk"), (REFLECT, "reflection")], ids=["bulk", "reflection"])
def test_held_streams_take_no_stream_of_others(path: str, name: str, besieged: Siege, report: Report) -> None:
    with report.fault("C1", f"60 held {name} streams of one address") as row:
        attacked = besieged.attacked("held", path=path, streams=60)
        row.also = str(attacked)

    assert attacked.victims.unserved() == []
    assert attacked.told_when == attacked.codes["RESOURCE_EXHAUSTED"] > 0
    assert attacked.untold() == []


@pytest.mark.parametrize("path", [BULK, REFLECT], ids=["bulk", "reflection"])
def test_twin_in_one_pool_held_streams_stop_others(path: str, tmp_path: Path, report: Report) -> None:
    with sabotaged(tmp_path, "one_pool_of_streams") as besieged:
        attacked = besieged.attacked("held", path=path, streams=60, for_s=_TWIN_S)

    assert {line.partition(":")[0] for line in attacked.victims.unserved()} >= {"bulk", "import", "verification"}
    report.twin("C1", "pools by trust, and shares of them", str(attacked))


def test_a_viewer_without_messages_stops_no_administration(besieged: Siege, report: Report) -> None:
    with report.fault("C1", "100 admin calls a second without a message, of a viewer") as row:
        attacked = besieged.attacked("body_less", per_s=100, token=besieged.viewer_token())
        row.also = str(attacked)

    assert attacked.victims.unserved() == []
    assert attacked.untold() == []


def test_twin_on_workers_calls_without_messages_stop_it(tmp_path: Path, report: Report) -> None:
    with sabotaged(tmp_path, "messages_on_workers") as besieged:
        attacked = besieged.attacked("body_less", per_s=100, token=besieged.viewer_token(), for_s=_TWIN_S)

    assert any(line.startswith("admin read") for line in attacked.victims.unserved())
    report.twin("C1", "waiting for messages without a worker", str(attacked))


# Above 4 MiB, grpcio refuses the message at its header.
@pytest.mark.parametrize("size", [(4 << 20) - 1, (8 << 20) - 1], ids=["4 MiB", "8 MiB"])
def test_unfinished_messages_cost_64_mib_at_most(size: int, besieged: Siege, report: Report) -> None:
    with report.fault("C1", f"300 unfinished messages of {size + 1 >> 20} MiB on 3 connections") as row:
        attacked = besieged.attacked("unfinished", calls=300, size=size)
        row.also = str(attacked)

    assert attacked.victims.unserved() == []
    assert attacked.untold() == []
    assert attacked.grown_bytes < UNADMITTED_BYTES + OTHER_BYTES


def test_twin_that_receives_all_messages_at_once_costs_more(tmp_path: Path, report: Report) -> None:
    with sabotaged(tmp_path, "all_messages_at_once") as besieged:
        attacked = besieged.attacked("unfinished", calls=300, size=(4 << 20) - 1, for_s=_TWIN_S)

    assert attacked.grown_bytes > UNADMITTED_BYTES + OTHER_BYTES
    report.twin("C1", "few messages at once", str(attacked))
