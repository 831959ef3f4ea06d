"""Networks as operators write them."""

from ipaddress import ip_address

import pytest

from gatekeeper_grpc.config.networks import Networks


def test_networks_and_single_addresses_are_read_and_written() -> None:
    networks = Networks.parse("10.0.0.0/8, 192.0.2.7,fd00::/8")

    assert str(networks) == "10.0.0.0/8,192.0.2.7/32,fd00::/8"
    inside = ["10.1.2.3", "192.0.2.7", "fd12::1"]
    outside = ["11.0.0.1", "192.0.2.8", "fe80::1"]
    assert [address for address in [*inside, *outside] if ip_address(address) in networks] == inside


def test_without_networks_no_address_is_in_them() -> None:
    assert not Networks()
    assert ip_address("127.0.0.1") not in Networks()


@pytest.mark.parametrize("text", ["10.0.0.0/33", "proxy.internal", "10.0.0.0/8;fd00::/8", "10.0.0.0/8,"])
def test_anything_else_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match="must be networks or addresses"):
        Networks.parse(text)


@pytest.mark.parametrize("text", ["0.0.0.0/0", "10.0.0.0/8,::/0"])
def test_all_addresses_are_refused_because_any_client_could_lie(text: str) -> None:
    with pytest.raises(ValueError, match="must not contain all addresses"):
        Networks.parse(text)
