"""The addresses of peers (`bench.peers.clients`)."""

import pytest

from bench.peers.clients import Address, address_of


def test_a_url_gives_scheme_and_address() -> None:
    assert address_of("grpc://127.0.0.1:8013") == ("grpc", Address("127.0.0.1", 8013))
    assert address_of("http://[::1]:4242/") == ("http", Address("::1", 4242))


def test_the_authority_of_an_ipv6_address_has_brackets() -> None:
    assert Address("::1", 80).authority == "[::1]:80"
    assert Address("127.0.0.1", 80).authority == "127.0.0.1:80"


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "http://127.0.0.1", "https://127.0.0.1:1", "http://a:1/path"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not grpc://"):
        address_of(url)
