"""Rounds become one figure, and a figure is compared with its bar."""

import pytest

from bench.bars import BARS, Bar
from bench.figures import Effort, Figure, figure, median_figure, percentile, shown


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.995, 100), (1.0, 100), (0.001, 1), (0.07, 7)]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(share: float, expected: float) -> None:
    assert percentile(range(100, 0, -1), share) == expected


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.99) == 7.0


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_figure_of_rounds_is_their_median_with_the_extremes() -> None:
    found = median_figure("name", "what", "ms", [3.0, 1.0, 9.0])

    assert (found.value, found.low, found.high, found.rounds) == (3.0, 1.0, 9.0, 3)


def test_a_figure_without_a_round_that_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="no round counts"):
        median_figure("unary.1.cpu", "what", "x empty", [])


def test_a_figure_has_the_bar_of_its_name() -> None:
    assert figure("load.first", "what", "s", 1.0).bar == BARS["load.first"]
    assert figure("no bar", "what", "s", 1.0).bar is None


@pytest.mark.parametrize(
    ("is_maximum", "value", "verdict"),
    [(True, 1.9, "met"), (True, 2.0, "met"), (True, 2.1, "missed"), (False, 1.9, "missed"), (False, 2.0, "met")],
)
def test_a_figure_keeps_its_bar_up_to_the_limit(is_maximum: bool, value: float, verdict: str) -> None:
    bar = Bar(limit=2.0, kind="gate", is_maximum=is_maximum)
    found = Figure(name="n", what="w", value=value, unit="", low=value, high=value, bar=bar)

    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("value", "text"),
    [(1_234_567, "1.23 M"), (17e6, "17 M"), (12_345.6, "12,346"), (99.94, "99.9"), (0.01234, "0.0123"), (0, "0")],
)
def test_a_value_is_shown_with_the_digits_that_count(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_smaller_effort_has_fewer_of_everything_but_never_none() -> None:
    assert Effort(scale=0.05).scaled(1_000) == 50
    assert Effort(scale=0.001).scaled(10) == 1
