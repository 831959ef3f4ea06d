"""Instances that count for themselves and tell each other: together they let pass what one may."""

from collections import Counter
from collections.abc import Mapping

import pytest

from gatekeeper_grpc.domain.errors import RateLimited, Unavailable
from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.rate_exchange import CountExchange
from gatekeeper_grpc.domain.rate_limiter import RateLimiter
from tests.support.clocks import Clock

RATE = Rate(count=100, unit="s", burst=100)


class Numbers:
    """The numbers of all instances, in memory: implements SharedCounts."""

    def __init__(self) -> None:
        self.numbers: Counter[tuple[str, str]] = Counter()
        self.is_away = False

    def add(self, limit: str, counts: Mapping[str, int]) -> Mapping[str, int]:
        if self.is_away:
            raise Unavailable("away")
        self.numbers.update({(limit, caller): count for caller, count in counts.items()})
        return {caller: self.numbers[limit, caller] for caller in counts}


class Instance:
    def __init__(self, clock: Clock, numbers: Numbers) -> None:
        self.limiter = RateLimiter("standard_tier", RATE, keeps_counts=True, clock=clock)
        self.exchange = CountExchange(numbers, [self.limiter])

    def passed(self, calls: int, caller: str = "key") -> int:
        """Make calls at this moment, and count those that pass."""
        return sum(self._passes(caller) for _ in range(calls))

    def _passes(self, caller: str) -> bool:
        try:
            self.limiter.take(caller)
        except RateLimited:
            return False
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
def pair(clock: Clock, numbers: Numbers) -> tuple[Instance, Instance]:
    return Instance(clock, numbers), Instance(clock, numbers)


def flood(clock: Clock, instances: tuple[Instance, ...], *, seconds: int) -> int:
    """Have a caller ask every instance for twice the rate, with an exchange twice a second; count what passes."""
    passed = 0
    for _ in range(seconds * 10):
        clock.advance(0.1)
        passed += sum(instance.passed(20) for instance in instances)
        if round(clock.now_s * 10) % 5 == 0:
            for instance in instances:
                instance.exchange.run()
    return passed


def test_two_instances_together_let_the_rate_pass(clock: Clock, pair: tuple[Instance, Instance]) -> None:
    flood(clock, pair, seconds=10)  # What they let pass before they knew of each other is paid back.

    assert 0.9 * 100 * 60 <= flood(clock, pair, seconds=60) <= 1.1 * 100 * 60


def test_twin_that_exchanges_nothing_lets_twice_the_rate_pass(
    clock: Clock, pair: tuple[Instance, Instance], numbers: Numbers
) -> None:
    numbers.is_away = True
    flood(clock, pair, seconds=10)

    assert flood(clock, pair, seconds=60) > 1.9 * 100 * 60


def test_callers_who_rest_everywhere_are_asked_for_no_more(clock: Clock, pair: tuple[Instance, Instance]) -> None:
    one, other = pair
    assert not one.exchange.has_work()
    one.passed(1)
    other.passed(1)
    for _ in range(3):
        assert one.exchange.has_work()
        clock.advance(0.5)
        one.exchange.run()
        other.exchange.run()
        if not one.exchange.has_work():
            break

    assert not one.exchange.has_work()
    assert not other.exchange.has_work()


def test_what_others_let_pass_long_ago_is_not_charged(
    clock: Clock, pair: tuple[Instance, Instance], numbers: Numbers
) -> None:
    one, other = pair
    flood(clock, (one,), seconds=60)
    other.passed(1)
    other.exchange.run()

    assert other.passed(99) == 99


def test_after_an_outage_the_numbers_begin_where_they_stand(
    clock: Clock, pair: tuple[Instance, Instance], numbers: Numbers
) -> None:
    one, other = pair
    flood(clock, pair, seconds=2)
    numbers.is_away = True
    flood(clock, (one,), seconds=10)
    other.exchange.run()
    numbers.is_away = False
    clock.advance(10.0)
    other.passed(1)
    other.exchange.run()

    assert other.passed(99) == 99
