"""Whom a call comes from if a proxy passes it on: what a trusted proxy says in `x-forwarded-for`."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Protocol

from gatekeeper_grpc.auth.addresses import IpAddress, ip_address_of, peer_at

_HEADER: Final = "x-forwarded-for"
# A longer way through trusted proxies is no way that a call takes. The header may have thousands of addresses.
_MAX_HOPS: Final = 16


class Proxies(Protocol):
    """The addresses of trusted proxies."""

    def __contains__(self, address: IpAddress) -> bool:
        """Return whether a trusted proxy has this address."""
        ...


def client_of(peer: str, metadata: Iterable[tuple[str, str | bytes]], proxies: Proxies) -> str:
    """Return whom a call comes from, in gRPC's form, such as "ipv4:192.0.2.7:0".

    Each proxy appends the address that it was called from. So what the nearest proxy wrote is last, and is true if that
    proxy is trusted; what it names is asked in turn. Anything before the first address that is no trusted proxy may be
    an invention of the client.
    """
    client = peer
    for hop in islice(_hops(metadata), _MAX_HOPS):
        address = ip_address_of(client)
        named = peer_at(hop) if address is not None and address in proxies else None
        if named is None:
            break
        client = named
    return client


def _hops(metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[str]:
    """Yield the addresses that proxies wrote, the last first."""
    values = [value for key, value in metadata if key == _HEADER and isinstance(value, str)]
    for value in reversed(values):
        yield from (hop.strip() for hop in reversed(value.split(",")))
