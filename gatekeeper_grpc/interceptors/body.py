"""The innermost stage: from the bytes of a call to the messages its behaviour wants, on the worker.

grpcio would parse on its one serving thread, where a large message stalls every other call.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from gatekeeper_grpc.domain.errors import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageParser:
    """Makes messages of one method from bytes."""

    parse: Callable[[bytes], Any] | None
    """The method's deserializer; None leaves the bytes as they are."""
    max_bytes: int

    def __call__(self, body: bytes) -> Any:
        """Return the message in `body`; `InvalidArgument` if it is too long or not one."""
        if len(body) > self.max_bytes:
            raise InvalidArgument.of("request", f"must be at most {self.max_bytes} bytes long, not {len(body)}")
        try:
            return body if self.parse is None else self.parse(body)
        except (DecodeError, ValueError) as cause:  # ValueError: text that is not UTF-8
            raise InvalidArgument("the request is not a message of this method's type") from cause


Parser = Callable[[bytes], Any]


def checked(parser: Parser, check: Callable[[bytes], None]) -> Parser:
    """Return a parser that has each body pass `check` first: what nobody signed is not parsed."""

    def parse(body: bytes) -> Any:
        check(body)
        return parser(body)

    return parse


def only_message(bodies: Iterator[bytes], parser: Parser) -> Any:
    """Return the one message of a unary request; like grpcio, leave any further ones unread.

    Raises:
        InvalidArgument: The client ended its requests without one, or sent no valid one.
    """
    for body in bodies:
        return parser(body)
    raise InvalidArgument("this method needs exactly one request message; none was sent")


def messages(bodies: Iterator[bytes], parser: Parser) -> Iterator[Any]:
    """Return the messages of a streaming request, each parsed when it is asked for."""
    return map(parser, bodies)
