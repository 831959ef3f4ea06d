"""The load test plans its calls, and judges what became of them."""

import io
from collections import Counter
from itertools import pairwise

import pytest
from rich.console import Console

from bench.loadtest import STAGES, Outcome, Planned, Stage, conclude, plan, scaled


def test_the_scenario_is_ten_minutes_with_a_spike() -> None:
    assert sum(stage.seconds for stage in STAGES) == 600
    assert [stage.users for stage in STAGES] == [100, 100, 200, 0]


def test_a_scale_shortens_the_time_and_users_replace_the_hundred() -> None:
    assert scaled(STAGES, 0.1, 10)[2] == Stage("spike", 12, 20)


def test_the_sustained_load_is_the_rate_of_all_users() -> None:
    calls = Counter(each.stage for each in plan(scaled(STAGES, 0.1, 10), rate=5))

    assert calls["sustained"] == pytest.approx(30 * 10 * 5, rel=0.02)
    assert calls["ramp"] == pytest.approx(12 * 5 * 5, rel=0.1)
    assert calls["spike"] == pytest.approx(12 * 15 * 5, rel=0.1)


def test_calls_are_planned_in_order_and_spread_evenly_over_users() -> None:
    planned = [*plan([Stage("ramp", 1, 4), Stage("sustained", 4, 4)], rate=2)]
    sustained = [each for each in planned if each.stage == "sustained"]

    assert all(one.at_s < other.at_s for one, other in pairwise(planned))
    assert Counter(each.user for each in sustained) == dict.fromkeys(range(4), 8)


def test_a_load_without_users_is_no_less_than_one() -> None:
    assert [*plan([Stage("down", 1, 0)], rate=2)] == [Planned(0.0, 0, "down"), Planned(0.5, 0, "down")]


def outcome(*latencies: float, failed: int = 0) -> Outcome:
    return Outcome(
        latencies={"sustained": list(latencies)}, failures=Counter({"UNAVAILABLE": failed} if failed else {})
    )


@pytest.mark.parametrize(
    ("found", "is_good"),
    [
        (outcome(*[1.0] * 1_000), True),
        (outcome(*[1.0] * 995, *[49.9] * 5), True),
        (outcome(*[1.0] * 980, *[50.0] * 20), False),
        (outcome(*[1.0] * 2_000, failed=1), True),
        (outcome(*[1.0] * 999, failed=1), False),
        (outcome(), False),
    ],
)
def test_limits_of_latency_and_of_failures_are_kept_or_missed(found: Outcome, is_good: bool) -> None:
    printed = io.StringIO()

    assert conclude(found, Console(file=printed, width=100)) is is_good
    assert printed.getvalue().splitlines()[-1].startswith("kept" if is_good else "MISSED")


def test_what_processes_found_is_added_up() -> None:
    found = outcome(1.0, failed=1)
    found.add(Outcome(latencies={"sustained": [2.0], "spike": [3.0]}, failures=Counter({"UNAVAILABLE": 2})))

    assert found.latencies == {"sustained": [1.0, 2.0], "spike": [3.0]}
    assert found.failures == {"UNAVAILABLE": 3}
