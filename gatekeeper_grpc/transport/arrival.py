"""What is known of a call when it arrives, before its message: who calls, and for whose share the call counts."""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from gatekeeper_grpc.auth.lockout import address_of
from gatekeeper_grpc.domain.caller import Caller

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


class Standing(IntEnum):
    """Who gives way in a full pool: first those of the highest value."""

    PROVEN = 0
    """The last login of its address succeeded. Slots may be kept for it."""
    UNKNOWN = 1
    FAILED = 2
    """Logins of its address have failed recently."""


@dataclass(slots=True, kw_only=True)
class Arrival:
    """One call, or all calls of a stranger, as known without I/O."""

    owner: Owner
    caller: Caller | None = None
    """The admin user whose access token the call carries, if its method reads tokens."""
    client: Any = None
    """The client whose key the call has (`auth.client_calls.ClientCall`); its nonce is not used yet."""
    standing: Standing = Standing.UNKNOWN
    is_denied: bool = False
    """The caller's role does not suffice: the call is refused on a worker, which does not wait for its message."""


@lru_cache(maxsize=_REMEMBERED_PEERS)
def stranger(peer: str) -> Arrival:
    """Return what is known of a call without credentials.

    Args:
        peer: What gRPC calls the peer, such as "ipv4:192.0.2.7:5001".
    """
    return Arrival(owner=Owner(ADDRESS, address_of(peer)))
