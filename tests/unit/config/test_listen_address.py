"""Addresses to listen on: what can be one is read, and of anything else is said what would be right."""

import pytest

from gatekeeper_grpc.config.listen_address import ListenAddress


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("localhost:0", "localhost:0"),
        ("[::]:65535", "[::]:65535"),
        ("[0:0:0:0:0:0:0:1]:1", "[::1]:1"),
        ("unix:/run/gk.sock", "unix:/run/gk.sock"),
        ("unix:///run/gk.sock", "unix:/run/gk.sock"),
        ("unix:gk.sock", "unix:gk.sock"),
    ],
)
def test_an_address_is_read_and_written(text: str, same: str) -> None:
    assert str(ListenAddress.parse(text)) == same


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (":42066", "0.0.0.0:42066"),
        ("*:42064", "127.0.0.1:42064"),
        ("42067", "127.0.0.1:42067"),
        ("127.0.0.1:99999", "65535"),
        ("127.0.0.1:-1", "65535"),
        ("127.0.0.1:", "65535"),
        ("127.0.0.1:http", "65535"),
        ("127.0.0.1: 1", "65535"),
        ("127.0.0.1:\u0661", "65535"),
        ("localhost", "port is missing"),
        ("::1:50051", "[::1]:50051"),
        ("[::1]", "IPv6"),
        ("[localhost]:1", "IPv6"),
        ("256.1.1.1:1", "IPv4"),
        ("a b:1", "characters"),
        ("-x:1", "characters"),
        ("http://localhost:1", "no URL"),
        ("dns:///localhost:1", "no URL"),
        ("unix:", "unix:/path"),
        ("unix://host/path", "unix:/path"),
        (f"unix:/{107 * 'x'}", "107 bytes"),
    ],
)
def test_what_is_no_address_is_refused_with_what_would_be_right(text: str, right: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as refused:
        ListenAddress.parse(text)

    assert right in str(refused.value)
