"""How often clients may call, and how many watchers they may have open, as the settings say."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Final

from gatekeeper_grpc.auth.addresses import ip_address_of, is_local
from gatekeeper_grpc.config.settings import Settings
from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.rate_exchange import SharedBudgets
from gatekeeper_grpc.interceptors.rate_limits import Limit, RateLimits
from gatekeeper_grpc.transport.stream_limits import StreamLimit, watchers_of_address

_REMEMBERED_PEERS: Final = 8_192


def rate_limits(settings: Settings, *, is_embedded: bool, shared: SharedBudgets | None) -> RateLimits:
    """Build the rate limits of an instance.

    Args:
        settings: What the operator decided.
        is_embedded: Whether the database is the embedded one: then nobody on this machine waits to make changes.
        shared: The budgets over all instances, if there are any.
    """
    return RateLimits(
        {limit: rate for limit, rate in _rates(settings).items() if rate is not None},
        is_exempt=_exempt(settings),
        may_change_freely=is_local if is_embedded else _nobody,
        requires_keys=settings.evaluation_access != "open",
        shared=shared,
    )


def watcher_limit(settings: Settings) -> StreamLimit | None:
    """Build the limit of the watchers of an address; None: there is none."""
    most = settings.max_watchers_per_address
    return None if most is None else watchers_of_address(most, is_exempt=_exempt(settings))


def _rates(settings: Settings) -> Mapping[Limit, Rate | None]:
    return {
        Limit.LOGIN: settings.login_rate,
        Limit.MUTATIONS: settings.mutation_rate,
        Limit.TOKEN_MUTATIONS: settings.token_mutation_rate,
        Limit.ADMIN_READS: settings.admin_read_rate,
        Limit.STANDARD_TIER: settings.standard_tier_rate,
        Limit.HIGH_TIER: settings.high_tier_rate,
        Limit.ADDRESS: settings.address_rate,
    }


def _exempt(settings: Settings) -> Callable[[str], bool]:
    return lru_cache(maxsize=_REMEMBERED_PEERS)(partial(_is_exempt, settings))


def _is_exempt(settings: Settings, peer: str) -> bool:
    """Return whether the limits of addresses do not apply to a peer."""
    address = ip_address_of(peer)
    return is_local(peer) or (address is not None and address in settings.trusted_cidrs)


def _nobody(_peer: str) -> bool:
    return False
