"""What is known of a call when it arrives, before its message: who calls, and for whose share the call counts."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from gatekeeper_grpc.auth.addresses import address_of
from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.rate_limiter import Budget, RateLimiter

ADDRESS = "address"
CLIENT_KEY = "client key"
ADMIN_USER = "admin user"

_REMEMBERED_PEERS = 8_192


class Owner(NamedTuple):
    """Whose share of a pool a call counts for: the best known of admin user, client key and address.

    An IPv6 address counts by its /64. No address is exempt, loopback neither.
    """

    kind: str
    """`ADDRESS`, `CLIENT_KEY` or `ADMIN_USER`."""
    name: str | int


class Standing(NamedTuple):
    """What is known of where a try of a password comes from: decides who is served first, and who gives way."""

    is_proven: bool = False
    """The last try of its address succeeded, or the call has an access token."""
    tries: int = 0
    """How many tries without success its address made before, the refused and those in flight among them."""
    network_failures: int = 0
    """How many wrong passwords came from its network: its /24, or its /48 of IPv6."""


STRANGER = Standing()


class Charge(NamedTuple):
    """A rate limit that a call counts under, and whose budget it is."""

    limiter: RateLimiter
    caller: str

    def take(self, cost: int = 1) -> Budget:
        """Count the call; see `RateLimiter.take`."""
        return self.limiter.take(self.caller, cost)


@dataclass(slots=True, kw_only=True)
class Arrival:
    """One call, or all calls of a stranger, as known without I/O."""

    owner: Owner
    caller: Caller | None = None
    """Whose token the call carries, if its method reads tokens."""
    client: Any = None
    """The client whose key the call has (`auth.client_calls.ClientCall`); its nonce is not used yet."""
    standing: Standing = STRANGER
    charges: tuple[Charge, ...] = ()
    """The rate limits that the call has passed."""
    budget: Budget | None = None
    """What the limits leave to an admin user, who is told."""
    is_denied: bool = False
    """The caller's role does not suffice: the call is refused on a worker, which does not wait for its message."""


@lru_cache(maxsize=_REMEMBERED_PEERS)
def stranger(peer: str) -> Arrival:
    """Return what is known of a call without credentials.

    Args:
        peer: What gRPC calls the peer, such as "ipv4:192.0.2.7:5001".
    """
    return Arrival(owner=Owner(ADDRESS, address_of(peer)))
