"""Whom a call comes from through proxies: what a trusted one says, and nothing that a client may have invented."""

import pytest

from gatekeeper_grpc.config.networks import Networks
from gatekeeper_grpc.transport.forwarded import client_of

PROXIES = Networks.parse("10.0.0.0/8,fd00::/8")
PROXY = "ipv4:10.0.0.1:40000"
STRANGER = "ipv4:203.0.113.7:40000"


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        pytest.param(PROXY, ["198.51.100.9"], "ipv4:198.51.100.9:0", id="whom a trusted proxy names"),
        pytest.param(PROXY, ["198.51.100.9:5001"], "ipv4:198.51.100.9:0", id="with a port"),
        pytest.param(PROXY, ["2001:db8::9"], "ipv6:[2001:db8::9]:0", id="IPv6"),
        pytest.param(PROXY, ["[2001:db8::9]:5001"], "ipv6:[2001:db8::9]:0", id="IPv6 with a port"),
        pytest.param("ipv6:[fd00::1]:40000", ["198.51.100.9"], "ipv4:198.51.100.9:0", id="a proxy of IPv6"),
        pytest.param(PROXY, ["198.51.100.9, 10.0.0.2"], "ipv4:198.51.100.9:0", id="through two trusted proxies"),
        pytest.param(PROXY, ["198.51.100.9", "10.0.0.2"], "ipv4:198.51.100.9:0", id="in two headers"),
        pytest.param(
            PROXY, ["192.0.2.1, 198.51.100.9"], "ipv4:198.51.100.9:0", id="what a client wrote itself counts nothing"
        ),
        pytest.param(PROXY, [], PROXY, id="a proxy that names nobody"),
        pytest.param(PROXY, ["10.0.0.2"], "ipv4:10.0.0.2:0", id="a call of a proxy itself"),
        pytest.param(PROXY, ["unknown"], PROXY, id="no address"),
        pytest.param(PROXY, ["198.51.100.9, unknown"], PROXY, id="no address at the end"),
        pytest.param(STRANGER, ["198.51.100.9"], STRANGER, id="a stranger names nobody"),
        pytest.param("unix:/run/gatekeeper.sock", ["198.51.100.9"], "unix:/run/gatekeeper.sock", id="a Unix socket"),
    ],
)
def test_the_client_is_the_nearest_address_that_is_no_trusted_proxy(peer: str, headers: list[str], client: str) -> None:
    metadata = [("x-other", "1"), *(("x-forwarded-for", header) for header in headers)]

    assert client_of(peer, metadata, PROXIES) == client


def test_a_long_header_is_read_from_its_end_and_not_to_its_beginning() -> None:
    hops = ["198.51.100.9", *(f"10.0.0.{number}" for number in range(100))]

    assert client_of(PROXY, [("x-forwarded-for", ",".join(hops))], PROXIES) == "ipv4:10.0.0.84:0"
