"""The tables of the capacity page follow from the figures of a result."""

import pytest

from bench.bus_model import announcement_ms
from bench.capacity_tables import costs_of, instances, loads
from bench.figures import figure
from bench.results import Result
from tests.support.figures import COSTS, RESULT

MEASURED = {
    **{f"capacity.{name}": getattr(COSTS, name) for name in COSTS.__dataclass_fields__},
    "bus.listen.10.cpu": 9.0,
    "bus.listen.100.cpu": 2.0,
    "bus.listen.300.cpu": 4.0,
    "bus.reads": 0.5,
}


def result(**changed: float) -> Result:
    figures = tuple(figure(name, name, "", value) for name, value in {**MEASURED, **changed}.items())
    return Result(commit="c", time="t", machine=RESULT.machine, seconds=1, figures=figures)


def test_the_costs_of_a_result_are_those_that_it_measured() -> None:
    assert costs_of(result()) == COSTS


def test_a_result_without_costs_is_refused_by_their_names() -> None:
    with pytest.raises(LookupError, match="call_us"):
        costs_of(RESULT)


def test_an_announcement_costs_what_the_line_through_the_two_largest_says() -> None:
    assert announcement_ms(result(), 1_000) == pytest.approx(1 + 1_000 * 0.01)


def test_a_result_without_the_bus_says_nothing_of_announcements() -> None:
    with pytest.raises(LookupError, match=r"bus\.listen"):
        announcement_ms(RESULT, 10)


def test_the_heartbeats_of_instances_grow_with_their_square() -> None:
    cores = {row.split(" | ")[0].strip("| "): row.split(" | ")[4] for row in instances(result()).splitlines()[2:]}

    # 200 a second, of 11 ms each.
    assert cores["1,000"] == "2.2"
    assert cores["100"] == "0.04"


def test_the_table_of_loads_has_what_the_model_says() -> None:
    row = next(row for row in loads(result()).splitlines() if row.startswith("| 20,000 calls/s"))

    assert row == "| 20,000 calls/s | 5 | 2.4 | 81 | 75 |"
