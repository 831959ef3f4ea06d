"""The cost model: what a demand needs."""

from dataclasses import replace

import pytest

from bench.cost_model import MIN_PROCESSES, UTILISATION, Demand, line_through
from tests.support.figures import COSTS


def test_calls_cost_what_they_and_their_flags_cost() -> None:
    assert COSTS.cores(Demand(calls_per_s=1_000, flags_per_call=20)) == pytest.approx(0.01 + 0.12)


def test_contexts_cost_what_they_and_their_decisions_cost() -> None:
    assert COSTS.cores(Demand(contexts_per_s=10_000, flags_per_context=20)) == pytest.approx(0.01 + 0.12)


def test_memory_grows_with_flags_and_targets() -> None:
    assert COSTS.mib(Demand(flags=20_000, targets=500_000)) == pytest.approx(80 + 20 + 30)


def test_without_load_there_are_the_fewest_processes() -> None:
    assert COSTS.need(Demand()).processes == MIN_PROCESSES


def test_no_process_uses_more_of_its_core_than_it_may() -> None:
    need = COSTS.need(Demand(calls_per_s=20_000))

    assert need.cores / need.processes <= UTILISATION
    assert (need.cores - COSTS.rest_cores) / (need.processes - 1) > UTILISATION


def test_each_process_adds_what_it_uses_at_rest() -> None:
    without_rest = replace(COSTS, rest_cores=0)

    assert COSTS.need(Demand()).cores - without_rest.need(Demand()).cores == pytest.approx(MIN_PROCESSES * 0.01)


def test_each_process_adds_its_connections_and_statements() -> None:
    need = COSTS.need(Demand(calls_per_s=20_000, changes_per_s=2, pool_size=6))

    assert need.connections == need.processes * 4
    assert need.max_connections == need.processes * 11
    assert need.statements_per_s == need.processes * (2 + 2 * 3)


def test_a_line_leads_through_its_points() -> None:
    assert line_through((1, 101), (200, 300)) == pytest.approx((100, 1))


def test_two_points_at_one_x_make_no_line() -> None:
    with pytest.raises(ValueError, match="no line"):
        line_through((1, 2), (1, 3))
