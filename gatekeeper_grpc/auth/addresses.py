"""Where a client calls from: its address, and the network that it shares with its neighbours."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, TypeAlias
from urllib.parse import unquote

IpAddress: TypeAlias = IPv4Address | IPv6Address

_IPV6_HOME_PREFIX: Final = 64
_IPV6_SITE_PREFIX: Final = 48
_IPV4_NETWORK_PREFIX: Final = 24


def address_of(peer: str) -> str:
    """Return the address in what gRPC calls a peer, such as "ipv4:192.0.2.7:5001".

    The port is left out: every connection has another one. An IPv6 address becomes its /64, which one home or machine
    has to itself. Anything else, such as a Unix socket, becomes its kind.
    """
    address = _address(peer)
    return _prefix(address, _IPV6_HOME_PREFIX) if isinstance(address, IPv6Address) else str(address)


def ip_address_of(peer: str) -> IpAddress | None:
    """Return the address of a peer; None for a Unix socket. An IPv4 address that is written as IPv6 is IPv4."""
    address = _address(peer)
    return None if isinstance(address, str) else address


def peer_at(address: str) -> str | None:
    """Return what gRPC would call a peer at an address; None if it is none.

    Args:
        address: As a proxy names it: "192.0.2.7", "192.0.2.7:5001", "2001:db8::7" or "[2001:db8::7]:5001".
    """
    bare = address.rpartition(":")[0] if address.count(":") == 1 else address.partition("]")[0].removeprefix("[")
    try:
        found = ip_address(bare)
    except ValueError:
        return None
    return f"ipv4:{found}:0" if isinstance(found, IPv4Address) else f"ipv6:[{found}]:0"


def is_local(peer: str) -> bool:
    """Return whether a peer is on this machine: on loopback, or on a Unix socket."""
    address = _address(peer)
    return address == "unix" if isinstance(address, str) else address.is_loopback


def network_of(peer: str) -> str:
    """Return the network of a peer: its /24, or its /48 of IPv6, which one site has to itself."""
    address = _address(peer)
    if isinstance(address, str):
        return address
    return _prefix(address, _IPV6_SITE_PREFIX if isinstance(address, IPv6Address) else _IPV4_NETWORK_PREFIX)


def _address(peer: str) -> IpAddress | str:
    """Return the address of a peer; the kind of one that has none."""
    kind, _, endpoint = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = endpoint.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return kind
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _prefix(address: IpAddress, length: int) -> str:
    return str(ip_network((address, length), strict=False))
