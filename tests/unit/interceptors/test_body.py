"""The body of a call: bytes that are a message of the method's type, and nothing else, become one."""

from collections.abc import Iterator

import pytest
from google.protobuf.message import Message

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.interceptors.body import MessageParser, only_message, with_short_texts

pytestmark = pytest.mark.promise("D6")

REQUEST = pb.CreateFlagRequest(flag=Flag(key="a", tags=["beta"]), change_reason="why")
BODY = REQUEST.SerializeToString()


def parser(of: type[Message] = pb.CreateFlagRequest, *, max_bytes: int = 1_000) -> MessageParser:
    return MessageParser(parse=of.FromString, max_bytes=max_bytes)


def test_a_message_is_read_as_it_was_sent() -> None:
    assert parser()(BODY) == REQUEST


def test_a_method_without_a_type_gets_the_bytes_as_they_are() -> None:
    assert MessageParser(parse=None, max_bytes=10)(b"\xff") == b"\xff"


def test_the_greatest_length_is_accepted_and_one_byte_more_is_not() -> None:
    assert parser(max_bytes=len(BODY))(BODY) == REQUEST
    with pytest.raises(InvalidArgument) as refused:
        parser(max_bytes=len(BODY) - 1)(BODY)

    assert [violation.field for violation in refused.value.violations] == ["request"]


NO_MESSAGES = {
    "cut short": b"\x0a\x7fabc",
    "no field has this number": b"\x00\x00",
    "unclosed group": b"\x0b",
    "unknown wire type": b"\x0f",
    "endless number": b"\x10" + b"\xff" * 11,
    "not text": b"hello, world",
}
# The first field of each: a message, text, a number, nothing.
TYPES = [pb.CreateFlagRequest, pb.GetFlagRequest, pb.ListFlagsRequest, pb.ListAuthEventsRequest]


@pytest.mark.parametrize("body", NO_MESSAGES.values(), ids=NO_MESSAGES.keys())
def test_bytes_that_are_no_message_are_refused(body: bytes) -> None:
    for type_ in TYPES:
        with pytest.raises(InvalidArgument, match="not a message of this method's type"):
            parser(type_)(body)


NO_UTF_8 = {
    "a byte of no character": b"\xff",
    "half a character": b"\xc3",
    "a surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
    "beyond Unicode": b"\xf4\x90\x80\x80",
}


@pytest.mark.parametrize("text", NO_UTF_8.values(), ids=NO_UTF_8.keys())
@pytest.mark.parametrize("part", [b"beta", b"why"], ids=["inside another message", "in the request itself"])
def test_text_that_is_not_utf_8_is_refused(text: bytes, part: bytes) -> None:
    body = BODY.replace(part, text.ljust(len(part), b"x")[-len(part) :])

    with pytest.raises(InvalidArgument, match="not a message of this method's type"):
        parser()(body)


def test_a_unary_call_without_a_message_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="exactly one request message"):
        only_message(iter([]), parser())


def test_of_a_unary_call_only_the_first_message_is_read() -> None:
    def bodies() -> Iterator[bytes]:
        yield BODY
        raise AssertionError("read on")

    assert only_message(bodies(), parser()) == REQUEST


def test_texts_are_cut_and_unknown_fields_left_out() -> None:
    request = LoginRequest(username="anna", password="p" * 3_000)
    unknown = b"\x1a\x03abc"  # Field 3.
    received = LoginRequest.FromString(request.SerializeToString() + unknown)

    shortened = with_short_texts(received, max_chars=2_048)

    assert shortened == LoginRequest(username="anna", password="p" * 2_048).SerializeToString()
