"""Under which rate limit each method counts, and which calls have nothing to pay."""

import pytest

from gatekeeper_grpc.domain.errors import RateLimited
from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.rate_limiter import RateLimiter
from gatekeeper_grpc.interceptors.policy import POLICIES, CountsAs
from gatekeeper_grpc.interceptors.rate_limits import ContextMeter, Limit, RateLimits
from gatekeeper_grpc.transport.arrival import Charge
from tests.support.clocks import Clock

OURS = {name.removeprefix("/gatekeeper.v1."): row for name, row in POLICIES.items() if name.startswith("/gatekeeper.")}
RATE = Rate(count=1, unit="min", burst=3)
PECULIAR = {
    "AuthService/Login": CountsAs.LOGIN,
    "AdminService/ChangePassword": CountsAs.LOGIN,
    "AuthService/RefreshToken": None,
    "AuthService/Logout": None,
}
READS = ("Get", "List", "Verify", "Export", "Preview")


def expected(name: str) -> CountsAs | None:
    service, _, method = name.partition("/")
    if name in PECULIAR:
        return PECULIAR[name]
    if service == "EvaluationService":
        return CountsAs.EVALUATION
    return CountsAs.READ if method.startswith(READS) else CountsAs.MUTATION


@pytest.mark.parametrize("name", OURS)
def test_each_method_counts_as_what_it_does(name: str) -> None:
    assert OURS[name].counts_as == expected(name)


@pytest.mark.parametrize("counts_as", [*CountsAs, None])
def test_without_limits_no_call_pays_for_any(counts_as: CountsAs | None) -> None:
    limits = RateLimits({})

    assert limits.admitting(counts_as) is None
    assert limits.sharing(counts_as) is None


def test_evaluation_pays_nothing_where_no_limit_can_apply() -> None:
    rates = dict.fromkeys(set(Limit) - {Limit.ADDRESS}, RATE)

    assert RateLimits(rates).admitting(CountsAs.EVALUATION) is None
    assert RateLimits(rates, requires_keys=True).admitting(CountsAs.EVALUATION) is not None
    assert RateLimits({Limit.ADDRESS: RATE}).admitting(CountsAs.EVALUATION) is not None


@pytest.mark.parametrize(
    ("messages", "passed"),
    [
        pytest.param([1_000, 1_000, 1_000, 1], 3, id="the first thousand is the call itself"),
        pytest.param([3_000, 1], 1, id="a message may count several times"),
        pytest.param([10] * 300 + [1], 300, id="small messages add up"),
        pytest.param([5_000], 0, id="more than the budget"),
    ],
)
def test_a_bulk_stream_counts_once_for_each_thousand_contexts(messages: list[int], passed: int) -> None:
    charge = Charge(RateLimiter("address", RATE, clock=Clock()), "203.0.113.7")
    charge.take()

    assert counted(ContextMeter([charge]), messages) == passed


def counted(meter: ContextMeter, messages: list[int]) -> int:
    """Count messages of so many contexts until one is refused; return how many passed."""
    for number, contexts in enumerate(messages):
        try:
            meter.add(contexts)
        except RateLimited:
            return number
    return len(messages)
