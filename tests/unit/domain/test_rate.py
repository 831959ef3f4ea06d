"""Rates as operators write them."""

import pytest

from gatekeeper_grpc.domain.rate import Rate


@pytest.mark.parametrize(
    ("text", "count", "unit", "burst", "interval_s"),
    [
        ("50/s", 50, "s", 50, 0.02),
        ("1000/min", 1_000, "min", 1_000, 0.06),
        ("5/min burst 20", 5, "min", 20, 12.0),
    ],
)
def test_a_rate_is_read_and_written_the_same(text: str, count: int, unit: str, burst: int, interval_s: float) -> None:
    rate = Rate.parse(text)

    assert (rate.count, rate.unit, rate.burst, str(rate)) == (count, unit, burst, text)
    assert rate.interval_s == pytest.approx(interval_s)


@pytest.mark.parametrize("text", ["", "5", "5/h", "0/s", "5/min burst 0", "-1/s", "5 /s", "5/min,20", "1e3/s"])
def test_anything_else_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match="must be a rate such as 50/s or '5/min burst 20', or off"):
        Rate.parse(text)
