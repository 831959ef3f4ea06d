"""Divides what does not fit into one message: gRPC clients accept 4 MiB by default, and ours stay below 1 MiB."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

Item = TypeVar("Item", bound=Message | str | bytes)

# Below 1 MiB, with 16 KiB left for the other fields.
MAX_PORTION_BYTES = (1 << 20) - (16 << 10)
# The tag, one byte for our field numbers, and the length of an item below 2 MiB.
_FRAME_BYTES = 4


def portions(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Divide items, in order, into as few lists as fit into a message each; no items: one empty list.

    An item that is larger than a message should be is alone in its list.
    """
    portion: list[Item] = []
    size = 0
    for item in items:
        item_size = _size(item)
        if size + item_size > MAX_PORTION_BYTES and portion:
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += item_size
    yield portion


def _size(item: Message | str | bytes) -> int:
    if isinstance(item, bytes):
        return _FRAME_BYTES + len(item)
    return _FRAME_BYTES + (len(item.encode()) if isinstance(item, str) else item.ByteSize())
