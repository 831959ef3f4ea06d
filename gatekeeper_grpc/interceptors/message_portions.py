"""Parses large messages in portions: parsing one of 4 MiB at once would keep the interpreter from all calls for 15 ms.

A protobuf message is the concatenation of its fields, and merging the parts of a concatenation gives the same message.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

from google.protobuf.message import Message

PORTION_BYTES: Final = 128 << 10
"""Parsing so many bytes takes half a millisecond."""
MAX_FIELDS: Final = 10_000
"""So many fields are looked at to find where portions end; the rest is one portion."""
# The kernel adds some 60 us. Without a pause, the thread that gives the interpreter away is the first to take it again.
_PAUSE_S: Final = 0.00005
_LENGTH_DELIMITED = 2
_MAX_SHIFT = 63


def parse_in_portions(body: bytes, message: Message, *, sleep: Callable[[float], None] = time.sleep) -> Message:
    """Parse `body` into an empty message, and give the interpreter away between two portions.

    Raises:
        DecodeError: As `Message.ParseFromString`.
    """
    for portion in portions_of(body):
        message.MergeFromString(portion)
        sleep(_PAUSE_S)
    return message


def portions_of(body: bytes) -> Iterator[bytes]:
    """Cut a serialised message between two of its fields, as soon as a portion has 128 KiB."""
    begin = 0
    for end in _field_ends(body):
        if end - begin >= PORTION_BYTES:
            yield body[begin:end]
            begin = end
    if begin < len(body):
        yield body[begin:]


def _field_ends(body: bytes) -> Iterator[int]:
    """Yield where fields end, until one is not a text, a message or the like, or is not well-formed."""
    position, fields = 0, 0
    while position < len(body) and fields < MAX_FIELDS:
        fields += 1
        try:
            tag, position = _varint(body, position)
            length, position = _varint(body, position)
        except (IndexError, OverflowError):
            return
        if tag & 7 != _LENGTH_DELIMITED:
            return
        position += length
        yield position


def _varint(body: bytes, position: int) -> tuple[int, int]:
    """Read a number, and return where it ends.

    Raises:
        IndexError: It is cut off.
        OverflowError: It has more than 64 bits. A number of megabytes would take hours to add up.
    """
    value = shift = 0
    while body[position] & 0x80:
        if shift >= _MAX_SHIFT:
            raise OverflowError
        value |= (body[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | body[position] << shift, position + 1
