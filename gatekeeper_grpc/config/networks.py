"""Networks that an operator names, such as those of trusted proxies."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

_FORM = "must be networks or addresses such as 10.0.0.0/8, with commas between them"


@dataclass(frozen=True, slots=True)
class Networks:
    """Some networks; none by default."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Networks":
        """Read networks such as "10.0.0.0/8", or single addresses, with commas between them.

        Raises:
            ValueError: One is neither, or contains all addresses.
        """
        networks = tuple(_network(part.strip()) for part in text.split(","))
        if any(network.prefixlen == 0 for network in networks):
            raise ValueError("must not contain all addresses: then any client could say that it calls from anywhere")
        return cls(networks)

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self.networks)

    def __bool__(self) -> bool:
        return bool(self.networks)

    def __str__(self) -> str:
        return ",".join(map(str, self.networks))


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ValueError(_FORM) from None
