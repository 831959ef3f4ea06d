"""Which rate limits a call counts under, and whose budget it takes from.

A call is counted when it arrives, on grpcio's serving thread: it takes no slot if it is refused. The reasons:
docs/decisions/0037-rate-limits.md.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from math import ceil
from types import MappingProxyType
from typing import Final

from gatekeeper_grpc.domain.client_key import RateTier
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.rate_exchange import CountExchange, SharedBudgets
from gatekeeper_grpc.domain.rate_limiter import Budget, RateLimiter
from gatekeeper_grpc.interceptors.policy import CountsAs
from gatekeeper_grpc.transport.arrival import Arrival, Charge, stranger
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall

CONTEXTS_OF_A_CALL: Final = 1_000
"""For how many contexts a bulk evaluation counts as one call."""


class Limit(StrEnum):
    """The rate limits, as clients and operators read their names."""

    LOGIN = "login"
    """Of an address."""
    MUTATIONS = "mutation"
    """Of an admin user, over all sessions."""
    TOKEN_MUTATIONS = "token_mutation"  # noqa: S105 - the name of a limit
    """Of an API token."""
    ADMIN_READS = "admin_read"
    """Of an admin user, over all sessions, or of an API token."""
    STANDARD_TIER = "standard_tier"
    """Of a client key, where one is required."""
    HIGH_TIER = "high_tier"
    """Of a client key, where one is required."""
    ADDRESS = "address"
    """Evaluations of an address."""


_TIERS: Mapping[RateTier, Limit] = MappingProxyType(
    {RateTier.STANDARD: Limit.STANDARD_TIER, RateTier.HIGH: Limit.HIGH_TIER}
)
# Evaluation waits for nobody, so what other instances let pass is learned in the background.
_EXCHANGED: Final = (Limit.STANDARD_TIER, Limit.HIGH_TIER, Limit.ADDRESS)
_ASKED: Final = (CountsAs.LOGIN, CountsAs.MUTATION)

Admit = Callable[[ArrivedCall, Arrival], Arrival]
"""Counts a call that arrives, and notes that with what is known of it; raises RateLimited if its budget is used up."""
Ask = Callable[[Arrival], Budget | None]
"""Counts a call over all instances, on its worker; raises RateLimited if their budget is used up."""
_ChargesOf = Callable[[ArrivedCall, Arrival], Iterable[Charge]]


class RateLimits:
    """The rate limits of an instance.

    Args:
        rates: The limits that apply.
        is_exempt: Whether the limits of addresses do not apply to what gRPC calls a peer.
        may_change_freely: Whether mutations from a peer are not limited.
        requires_keys: Whether evaluation requires a client key: if not, a client could leave its key out, so keys are
            not limited.
        shared: The budgets over all instances; None: this instance counts for itself.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        rates: Mapping[Limit, Rate],
        *,
        is_exempt: Callable[[str], bool] = lambda _peer: False,
        may_change_freely: Callable[[str], bool] = lambda _peer: False,
        requires_keys: bool = False,
        shared: SharedBudgets | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limiters = {
            limit: RateLimiter(limit, rate, keeps_counts=shared is not None and limit in _EXCHANGED, clock=clock)
            for limit, rate in rates.items()
        }
        self._is_exempt = is_exempt
        self._may_change_freely = may_change_freely
        self._requires_keys = requires_keys
        self._shared = shared
        self.exchange = None if shared is None else CountExchange(shared, self._limiters_among(_EXCHANGED))
        """Tells other instances what was let pass here, and learns what they let pass; None: there are no others."""

    def admitting(self, counts_as: CountsAs | None) -> Admit | None:
        """Return what counts the calls of a method; None if no limit can apply to them: they pay nothing then."""
        rules: Mapping[CountsAs, tuple[_ChargesOf, Sequence[Limit]]] = {
            CountsAs.LOGIN: (self._charges_of_login, [Limit.LOGIN]),
            CountsAs.READ: (self._charges_of_read, [Limit.ADMIN_READS]),
            CountsAs.MUTATION: (self._charges_of_mutation, [Limit.MUTATIONS, Limit.TOKEN_MUTATIONS]),
            CountsAs.EVALUATION: (
                self._charges_of_evaluation,
                [Limit.ADDRESS, *(_TIERS.values() if self._requires_keys else ())],
            ),
        }
        if counts_as is None:
            return None
        charges_of, limits = rules[counts_as]
        return partial(_admit, charges_of) if self._limiters_among(limits) else None

    def sharing(self, counts_as: CountsAs | None) -> Ask | None:
        """Return what counts the calls of a method over all instances; None if their workers ask nobody."""
        if self._shared is None or counts_as not in _ASKED:
            return None
        return partial(_ask, self._shared)

    def decisions(self) -> Mapping[Limit, tuple[int, int]]:
        """Return how many calls were allowed and how many were refused, by limit."""
        return {limit: (limiter.allowed, limiter.refused) for limit, limiter in self._limiters.items()}

    def _limiters_among(self, limits: Iterable[Limit]) -> list[RateLimiter]:
        return [self._limiters[limit] for limit in limits if limit in self._limiters]

    def _charges_of_login(self, call: ArrivedCall, _arrival: Arrival) -> Iterator[Charge]:
        return self._charge(Limit.LOGIN, _address_of(call))

    def _charges_of_read(self, _call: ArrivedCall, arrival: Arrival) -> Iterator[Charge]:
        return self._charge(Limit.ADMIN_READS, _admin_of(arrival))

    def _charges_of_mutation(self, call: ArrivedCall, arrival: Arrival) -> Iterator[Charge]:
        if not self._may_change_freely(call.client):
            yield from self._charge(_limit_of_mutation(arrival), _admin_of(arrival))

    def _charges_of_evaluation(self, call: ArrivedCall, arrival: Arrival) -> Iterator[Charge]:
        if Limit.ADDRESS in self._limiters and not self._is_exempt(call.client):
            yield from self._charge(Limit.ADDRESS, _address_of(call))
        tier = _TIERS.get(arrival.client.key.tier) if self._requires_keys else None
        if tier is not None:
            yield from self._charge(tier, arrival.client.key_id)

    def _charge(self, limit: Limit, caller: str) -> Iterator[Charge]:
        limiter = self._limiters.get(limit)
        if limiter is not None:
            yield Charge(limiter, caller)


NO_LIMITS = RateLimits({})


class ContextMeter:
    """Counts the contexts of a stream of bulk evaluation, which counts as one call for each 1,000 or part of them.

    Args:
        charges: The limits that the stream passed when it arrived, as one call.
    """

    def __init__(self, charges: Sequence[Charge]) -> None:
        self._charges = charges
        self._contexts = 0
        self._calls = 1

    def add(self, contexts: int) -> None:
        """Count the contexts of a further message.

        Raises:
            RateLimited: The budget does not suffice for them.
        """
        self._contexts += contexts
        calls = -(-self._contexts // CONTEXTS_OF_A_CALL)
        if calls > self._calls:
            for charge in self._charges:
                charge.take(calls - self._calls)
            self._calls = calls


def budget_metadata(budget: Budget) -> Iterator[tuple[str, str]]:
    """Yield what an admin user is told of a budget: its size, what is left, and after how many seconds it is full."""
    yield "x-ratelimit-limit", str(budget.rate.burst)
    yield "x-ratelimit-remaining", str(budget.remaining)
    yield "x-ratelimit-reset", str(ceil(budget.full_in_s))


def _admit(charges_of: _ChargesOf, call: ArrivedCall, arrival: Arrival) -> Arrival:
    charges = tuple(charges_of(call, arrival))
    if not charges:
        return arrival
    budgets = [charge.take() for charge in charges]
    return replace(arrival, charges=charges, budget=budgets[-1] if arrival.caller else None)


def _ask(shared: SharedBudgets, arrival: Arrival) -> Budget | None:
    """Take a call from budgets that all instances share; if they are away, what was counted here is all there is."""
    budget = arrival.budget
    for limiter, caller in arrival.charges:
        try:
            wait_s, full_in_s = shared.take(limiter.name, caller, limiter.rate)
        except Unavailable:
            return arrival.budget
        if wait_s > 0:
            raise limiter.refuse(caller, for_s=wait_s)
        budget = limiter.budget(full_in_s=full_in_s)
    return budget


def _address_of(call: ArrivedCall) -> str:
    return str(stranger(call.client).owner.name)


def _limit_of_mutation(arrival: Arrival) -> Limit:
    is_token = arrival.caller is not None and arrival.caller.api_token is not None
    return Limit.TOKEN_MUTATIONS if is_token else Limit.MUTATIONS


def _admin_of(arrival: Arrival) -> str:
    return arrival.caller.identity if arrival.caller else ""
