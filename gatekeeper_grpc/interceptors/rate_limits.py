"""Which rate limits a call counts under, and whose budget it takes from.

A call is counted when it arrives, on grpcio's serving thread: it takes no slot if it is refused. The reasons:
docs/decisions/0037-rate-limits.md.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from math import ceil

from gatekeeper_grpc.domain.client_key import RateTier
from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.rate_limiter import Budget, RateLimiter
from gatekeeper_grpc.interceptors.policy import CountsAs
from gatekeeper_grpc.transport.arrival import Arrival, Charge, stranger
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall


class Limit(StrEnum):
    """The rate limits, as clients and operators read their names."""

    LOGIN = "login"
    """Of an address."""
    MUTATIONS = "mutation"
    """Of an admin user, over all sessions."""
    ADMIN_READS = "admin read"
    """Of an admin user, over all sessions."""
    STANDARD_TIER = "standard tier"
    """Of a client key, where one is required."""
    HIGH_TIER = "high tier"
    """Of a client key, where one is required."""
    ADDRESS = "address"
    """Evaluations of an address."""


Admit = Callable[[ArrivedCall, Arrival], Arrival]
"""Counts a call that arrives, and notes that with what is known of it; raises RateLimited if its budget is used up."""


class RateLimits:
    """The rate limits of an instance.

    Args:
        rates: The limits that apply.
        is_exempt: Whether the limits of addresses do not apply to what gRPC calls a peer.
        may_change_freely: Whether mutations from a peer are not limited.
        requires_keys: Whether evaluation requires a client key: if not, a client could leave its key out, so keys are
            not limited.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        rates: Mapping[Limit, Rate],
        *,
        is_exempt: Callable[[str], bool] = lambda _peer: False,
        may_change_freely: Callable[[str], bool] = lambda _peer: False,
        requires_keys: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limiters = {limit: RateLimiter(limit, rate, clock=clock) for limit, rate in rates.items()}
        self._tiers = {
            RateTier.STANDARD: self._limiters.get(Limit.STANDARD_TIER),
            RateTier.HIGH: self._limiters.get(Limit.HIGH_TIER),
        }
        self._is_exempt = is_exempt
        self._may_change_freely = may_change_freely
        self._requires_keys = requires_keys

    def admitting(self, counts_as: CountsAs | None) -> Admit | None:
        """Return what counts the calls of a method; None if no limit can apply to them: they pay nothing then."""
        limiters = self._limiters
        match counts_as:
            case CountsAs.LOGIN if Limit.LOGIN in limiters:
                return self._admit_login
            case CountsAs.READ if Limit.ADMIN_READS in limiters:
                return self._admit_read
            case CountsAs.MUTATION if Limit.MUTATIONS in limiters:
                return self._admit_mutation
            case CountsAs.EVALUATION if Limit.ADDRESS in limiters or (
                self._requires_keys and any(self._tiers.values())
            ):
                return self._admit_evaluation
        return None

    def refused(self) -> Mapping[Limit, int]:
        """Return how many calls were refused, by limit."""
        return {limit: limiter.refused for limit, limiter in self._limiters.items()}

    def _admit_login(self, call: ArrivedCall, arrival: Arrival) -> Arrival:
        charge = Charge(self._limiters[Limit.LOGIN], _address(call))
        charge.take()
        return replace(arrival, charges=(charge,))

    def _admit_read(self, _call: ArrivedCall, arrival: Arrival) -> Arrival:
        return self._admit_admin(arrival, Limit.ADMIN_READS)

    def _admit_mutation(self, call: ArrivedCall, arrival: Arrival) -> Arrival:
        return arrival if self._may_change_freely(call.peer) else self._admit_admin(arrival, Limit.MUTATIONS)

    def _admit_admin(self, arrival: Arrival, limit: Limit) -> Arrival:
        charge = Charge(self._limiters[limit], arrival.owner)
        return replace(arrival, charges=(charge,), budget=charge.take())

    def _admit_evaluation(self, call: ArrivedCall, arrival: Arrival) -> Arrival:
        charges = tuple(self._charges_of_evaluation(call, arrival))
        for charge in charges:
            charge.take()
        return replace(arrival, charges=charges) if charges else arrival

    def _charges_of_evaluation(self, call: ArrivedCall, arrival: Arrival) -> Iterator[Charge]:
        by_address = self._limiters.get(Limit.ADDRESS)
        if by_address is not None and not self._is_exempt(call.peer):
            yield Charge(by_address, _address(call))
        if self._requires_keys and (by_key := self._tiers.get(arrival.client.key.tier)) is not None:
            yield Charge(by_key, arrival.client.key_id)


NO_LIMITS = RateLimits({})


def budget_metadata(budget: Budget) -> Iterator[tuple[str, str]]:
    """Yield what an admin user is told of a budget: its size, what is left, and after how many seconds it is full."""
    yield "x-ratelimit-limit", str(budget.rate.burst)
    yield "x-ratelimit-remaining", str(budget.remaining)
    yield "x-ratelimit-reset", str(ceil(budget.full_in_s))


def _address(call: ArrivedCall) -> str | int:
    return stranger(call.peer).owner.name
