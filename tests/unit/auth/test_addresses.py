"""Addresses and networks of clients, from what gRPC calls a peer."""

import pytest

from gatekeeper_grpc.auth.addresses import address_of, network_of

pytestmark = pytest.mark.promise("D4")


@pytest.mark.parametrize(
    ("peer", "address", "network"),
    [
        ("ipv4:192.0.2.7:5001", "192.0.2.7", "192.0.2.0/24"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:5001", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5001", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ("ipv6:[::ffff:192.0.2.7]:5001", "192.0.2.7", "192.0.2.0/24"),
        ("ipv6:[fe80::1%25eth0]:5001", "fe80::/64", "fe80::/48"),
        ("unix:", "unix", "unix"),
        ("unix:/run/gatekeeper.sock", "unix", "unix"),
        ("ipv4:nonsense", "ipv4", "ipv4"),
        ("", "", ""),
    ],
)
def test_an_address_has_no_port_and_both_are_prefixes_of_ipv6(peer: str, address: str, network: str) -> None:
    assert (address_of(peer), network_of(peer)) == (address, network)
