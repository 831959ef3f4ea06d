"""Addresses are tried before they are listened on: what is wrong is found out without taking anything away."""

import shutil
import socket
import stat
from pathlib import Path

import pytest

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.transport.listener import ListenError, try_address


def reason(address: ListenAddress) -> str:
    with pytest.raises(ListenError) as refused:
        try_address(address)
    said, _, why = str(refused.value).partition(f"cannot listen on {address}: ")
    assert said == ""
    return why


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0"])
def test_a_port_with_a_listener_is_refused_with_the_command_that_finds_it(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    with socket.create_server(("::1" if host == "::1" else "127.0.0.1", 0), family=family) as taken:
        port = taken.getsockname()[1]

        why = reason(ListenAddress(host=host, port=port))

    assert why.startswith(f"another process listens there (`ss -ltnp sport = :{port}` shows which)")


def test_no_command_is_named_that_the_reader_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "`" not in reason(ListenAddress(host="127.0.0.1", port=taken.getsockname()[1]))


def test_a_free_port_is_still_free_after_it_was_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    try_address(ListenAddress(host="127.0.0.1", port=port))

    socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("foo.invalid", "the name foo.invalid has no address"),
        ("203.0.113.1", "this machine has no address 203.0.113.1"),
    ],
)
def test_an_address_that_is_not_of_this_machine_is_refused(host: str, why: str) -> None:
    assert reason(ListenAddress(host=host)).startswith(why)


def test_a_unix_socket_of_a_server_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "gk.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        assert "another process listens there" in reason(ListenAddress(path=str(path)))

    assert stat.S_ISSOCK(path.stat().st_mode)
    try_address(ListenAddress(path=str(path)))  # Nobody listens any longer.


def test_a_unix_socket_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "no socket" in reason(ListenAddress(path=str(tmp_path / "file")))
    assert "directory does not exist" in reason(ListenAddress(path=str(tmp_path / "none" / "gk.sock")))
