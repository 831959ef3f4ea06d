"""The innermost stage: parses the messages of a call, on its worker, and serialises the responses.

grpcio would parse on its one serving thread, where a large message delays every other call. It would send a response of
any length, and the client would refuse it with a status that looks like the server's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from gatekeeper_grpc.domain.errors import InvalidArgument, ResourceExhausted
from gatekeeper_grpc.interceptors.message_portions import PORTION_BYTES, parse_in_portions
from gatekeeper_grpc.transport.pending_calls import too_long


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageParser:
    """Parses messages of one method."""

    parse: Callable[[bytes], Any] | None
    """The method's deserializer; None: the messages are bytes."""
    max_bytes: int

    def __call__(self, body: bytes) -> Any:
        """Return the message in `body`.

        Raises:
            InvalidArgument: `body` is too long, or not a message of the method's type.
        """
        if len(body) > self.max_bytes:
            raise too_long(len(body), self.max_bytes)
        try:
            return body if self.parse is None else _parsed(body, self.parse)
        except (DecodeError, ValueError) as cause:  # ValueError: text that is not UTF-8
            raise InvalidArgument("the request is not a message of this method's type") from cause


# What every gRPC client accepts by default.
MAX_RESPONSE_BYTES: Final = 4 << 20


class MessageSerializer:
    """Serialises the responses of one method.

    Args:
        serialize: The method's serializer; None: the responses are bytes.
        advice: What a client can do whose response would be too long, as a clause.
    """

    __slots__ = ("_advice", "_serialize")

    def __init__(self, serialize: Callable[[Any], bytes] | None, *, advice: str) -> None:
        self._serialize = serialize
        self._advice = advice

    def __call__(self, response: Any) -> bytes:
        """Return `response` as bytes, which it may be already.

        Raises:
            ResourceExhausted: A client with gRPC's default options would refuse it.
        """
        serialize = self._serialize
        body: bytes = response if type(response) is bytes or serialize is None else serialize(response)
        if len(body) > MAX_RESPONSE_BYTES:
            raise self._too_long(len(body))
        return body

    def _too_long(self, size: int) -> ResourceExhausted:
        return ResourceExhausted(
            f"the response would have {size} bytes, and gRPC clients accept {MAX_RESPONSE_BYTES}: {self._advice}",
            reason="RESPONSE_TOO_LARGE",
            metadata={"size": str(size), "limit": str(MAX_RESPONSE_BYTES)},
        )


def _parsed(body: bytes, parse: Callable[[bytes], Any]) -> Any:
    if len(body) > PORTION_BYTES and isinstance(empty := parse(b""), Message):
        return parse_in_portions(body, empty)
    return parse(body)


Parser = Callable[[bytes], Any]


def checked(parser: Parser, check: Callable[[bytes], None]) -> Parser:
    """Return a parser that calls `check` first: an unsigned body must not be parsed."""

    def parse(body: bytes) -> Any:
        check(body)
        return parser(body)

    return parse


def with_short_texts(message: Any, *, max_chars: int) -> bytes:
    """Serialise a message without what lies beyond `max_chars` of each of its texts, and without unknown fields."""
    message.DiscardUnknownFields()
    for field, value in message.ListFields():
        if isinstance(value, str):
            setattr(message, field.name, value[:max_chars])
    serialised: bytes = message.SerializeToString()
    return serialised


def only_message(bodies: Iterator[bytes], parser: Parser) -> Any:
    """Return the one message of a unary request; like grpcio, ignore any further ones.

    Raises:
        InvalidArgument: The client sent no message, or an invalid one.
    """
    for body in bodies:
        return parser(body)
    raise InvalidArgument("this method needs exactly one request message; none was sent")


def messages(bodies: Iterator[bytes], parser: Parser) -> Iterator[Any]:
    """Return the messages of a streaming request, each parsed when it is read."""
    return map(parser, bodies)
