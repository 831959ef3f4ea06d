"""The addresses of peers, and the clients that check their answers (`bench.peers.clients`)."""

import pytest

from bench.peers.checks import WrongAnswer
from bench.peers.clients import Address, address_of, client_of
from bench.peers.flags import User, flags_of
from bench.peers.protocols import Flagd, Ofrep, Protocol
from tests.support.ports import HOST, free_port


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


@pytest.mark.parametrize("protocol", [Flagd(), Ofrep()])
def test_a_peer_that_is_not_there_gives_no_answer(protocol: Protocol) -> None:
    call = protocol.all_flags(flags_of(1), User(0))

    with (
        client_of(Address(HOST, free_port()), {}, over_grpc=protocol.grpc) as client,
        pytest.raises(WrongAnswer, match=call.path),
    ):
        client.ask(call)
