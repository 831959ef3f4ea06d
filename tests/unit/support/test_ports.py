"""Free ports for the servers of tests (`tests.support.ports`)."""

import errno
import socket

import pytest

from tests.support.ports import HOST, free_port


def test_a_free_port_is_kept_for_a_server_that_names_it() -> None:
    port = free_port()

    with socket.socket() as stranger, pytest.raises(OSError, match="in use") as refused:
        stranger.bind((HOST, port))
    assert refused.value.errno == errno.EADDRINUSE
    with socket.create_server((HOST, port)) as server:
        assert server.getsockname() == (HOST, port)
