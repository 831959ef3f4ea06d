"""The rate limiter: a burst, then the rate, for each caller alone, in bounded memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gatekeeper_grpc.domain.errors import RateLimited
from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.rate_limiter import RateLimiter
from tests.support.clocks import Clock

RATE = Rate(count=5, unit="min", burst=20)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> RateLimiter:
    return RateLimiter("login", RATE, clock=clock)


def passed(limiter: RateLimiter, caller: str, calls: int) -> int:
    """Make calls at this moment, and count those that pass."""
    return sum(wait_s(limiter, caller) == 0 for _ in range(calls))


def wait_s(limiter: RateLimiter, caller: str, cost: int = 1) -> float:
    """Make a call; return how long it has to wait; 0: it passed."""
    try:
        limiter.take(caller, cost)
    except RateLimited as refusal:
        return refusal.retry_after_s or 0.0
    return 0.0


def test_a_burst_passes_and_the_next_call_is_told_when(limiter: RateLimiter) -> None:
    assert passed(limiter, "a", 20) == 20
    assert wait_s(limiter, "a") == pytest.approx(12.0)


def test_after_the_burst_calls_pass_at_the_sustained_rate(limiter: RateLimiter, clock: Clock) -> None:
    passed(limiter, "a", 20)
    allowed = 0
    for _ in range(600):
        clock.advance(1.0)
        allowed += passed(limiter, "a", 10)

    assert allowed == 50  # Ten minutes at five a minute.


def test_who_waits_as_long_as_told_passes_and_not_before(limiter: RateLimiter, clock: Clock) -> None:
    passed(limiter, "a", 20)
    clock.advance(wait_s(limiter, "a") - 0.01)
    assert wait_s(limiter, "a") > 0

    clock.advance(0.01)
    assert wait_s(limiter, "a") == 0


def test_refused_calls_cost_nothing(limiter: RateLimiter, clock: Clock) -> None:
    passed(limiter, "a", 1_000)
    clock.advance(12.0)

    assert passed(limiter, "a", 10) == 1
    assert limiter.refused == 980 + 9


def test_nobody_waits_for_another_caller(limiter: RateLimiter) -> None:
    passed(limiter, "a", 100)

    assert passed(limiter, "b", 20) == 20


def test_a_call_may_cost_several_and_never_more_than_a_full_budget(limiter: RateLimiter, clock: Clock) -> None:
    assert wait_s(limiter, "a", cost=15) == 0
    assert passed(limiter, "a", 10) == 5
    clock.advance(20 * 12.0)

    assert wait_s(limiter, "a", cost=1_000) == 0
    assert passed(limiter, "a", 1) == 0


def test_the_budget_says_what_is_left_and_when_it_is_full(limiter: RateLimiter, clock: Clock) -> None:
    first = limiter.take("a")
    clock.advance(6.0)
    second = limiter.take("a")

    assert (first.remaining, second.remaining) == (19, 18)
    assert first.full_in_s == pytest.approx(12.0)
    assert second.full_in_s == pytest.approx(18.0)


def test_what_others_let_pass_is_owed_up_to_a_full_budget(limiter: RateLimiter, clock: Clock) -> None:
    passed(limiter, "a", 20)
    limiter.charge("a", 5)
    assert wait_s(limiter, "a") == pytest.approx(6 * 12.0)

    limiter.charge("a", 1_000_000)
    assert wait_s(limiter, "a") == pytest.approx(21 * 12.0)


def test_one_whom_all_instances_refuse_waits_here_too(limiter: RateLimiter, clock: Clock) -> None:
    refusal = limiter.refuse("a", for_s=7.0)
    assert (refusal.retry_after_s, limiter.refused) == (7.0, 1)
    assert wait_s(limiter, "a") == pytest.approx(7.0)

    clock.advance(7.0)
    assert wait_s(limiter, "a") == 0


def test_strangers_take_bounded_memory_and_the_latest_are_kept(clock: Clock) -> None:
    limiter = RateLimiter("login", RATE, remembered=100, clock=clock)
    for number in range(10_000):
        passed(limiter, f"stranger-{number}", 20)

    assert len(limiter) == 100
    assert passed(limiter, "stranger-9999", 1) == 0


def test_callers_whose_budget_is_full_are_forgotten(limiter: RateLimiter, clock: Clock) -> None:
    for number in range(1_000):
        passed(limiter, f"early-{number}", 1)
    clock.advance(12.0)
    for number in range(1_000):
        passed(limiter, f"late-{number}", 1)

    assert len(limiter) == 1_000


def test_calls_at_the_same_moment_share_one_budget(limiter: RateLimiter) -> None:
    with ThreadPoolExecutor(8) as threads:
        counts: Iterator[int] = threads.map(lambda _: passed(limiter, "a", 100), range(8))

        assert sum(counts) == 20
