"""Clients that ask one question at a time and read the answer, over gRPC or HTTP/1.1."""

import http.client
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import grpc

from bench.peers.checks import WrongAnswer
from bench.peers.protocols import Call

TIMEOUT_S = 30


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Client(Protocol):
    """Asks one question at a time."""

    def ask(self, call: Call) -> bytes:
        """Return the answer.

        Raises:
            WrongAnswer: the server refused.
        """


class GrpcClient:
    """Over one channel of gRPC; it leaves the messages as they are."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def ask(self, call: Call) -> bytes:
        """Return the answer.

        Raises:
            WrongAnswer: the server refused.
        """
        assert call.body is not None
        try:
            answer: bytes = self._channel.unary_unary(call.path, bytes, bytes)(call.body, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise WrongAnswer(f"{call.path}: {error.code().name}: {error.details()}") from error
        return answer


class HttpClient:
    """Over one connection of HTTP/1.1."""

    def __init__(self, connection: http.client.HTTPConnection, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._headers = headers

    def ask(self, call: Call) -> bytes:
        """Return the answer.

        Raises:
            WrongAnswer: the server refused.
        """
        try:
            status, answer = self._exchange_again(call)
        except OSError as error:
            raise WrongAnswer(f"{call.path}: {error}") from error
        if status != http.client.OK:
            raise WrongAnswer(f"{call.path}: {status}: {answer[:200].decode(errors='replace')}")
        return answer

    def _exchange_again(self, call: Call) -> tuple[int, bytes]:
        try:
            return self._exchange(call)
        except ConnectionError:  # The server has closed a connection that was idle.
            self._connection.close()
            return self._exchange(call)

    def _exchange(self, call: Call) -> tuple[int, bytes]:
        self._connection.request("GET" if call.body is None else "POST", call.path, call.body, dict(self._headers))
        response = self._connection.getresponse()
        return response.status, response.read()


@contextmanager
def client_of(address: Address, headers: Mapping[str, str], *, over_grpc: bool) -> Iterator[Client]:
    """Connect inside the block."""
    if over_grpc:
        with grpc.insecure_channel(address.authority, options=[("grpc.max_receive_message_length", -1)]) as channel:
            yield GrpcClient(channel)
    else:
        with closing(http.client.HTTPConnection(*address, timeout=TIMEOUT_S)) as connection:
            yield HttpClient(connection, headers)


def address_of(url: str) -> tuple[str, Address]:
    """Return the scheme and the address of a peer.

    Raises:
        ValueError: the URL is not SCHEME://HOST:PORT.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("grpc", "http") or not parts.hostname or not parts.port or parts.path.strip("/"):
        raise ValueError(f"{url!r} is not grpc://HOST:PORT or http://HOST:PORT")
    return parts.scheme, Address(parts.hostname, parts.port)
