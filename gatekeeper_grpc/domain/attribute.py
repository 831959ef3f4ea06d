"""Attributes of a user: JSON values, selected by name or JSON Pointer and compared without coercion.

A number is an IEEE 754 double, as in google.protobuf.Struct. PostgreSQL's jsonb returns a large double as an integer:
integers are accepted everywhere and read as the nearest double.
"""

import json
import math
import re
from collections.abc import Hashable
from typing import Protocol

from typing_extensions import TypeAliasType

from gatekeeper_grpc.domain.limits import MAX_ATTRIBUTES_DEPTH

# Recursive: pydantic, which reads stored responses, resolves only an alias with a name.
JsonValue = TypeAliasType("JsonValue", "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None")


class Attributes(Protocol):
    """The attributes of one user, as conditions read them: a mapping, or a lookup on demand."""

    def get(self, name: str, /) -> JsonValue:
        """Return the value of a top-level attribute; None when there is none."""
        ...


# A name, or a whole JSON Pointer.
MAX_ATTRIBUTE_BYTES = 256

# Up to here every integer is a distinct double, so both notations are equal. RFC 8785 writes no larger integer.
_MAX_EXACT_INTEGER = 2**53 - 1

# The identity of a value that is nested too deep to equal any canonical value.
_TOO_DEEP = object()

_BAD_ESCAPE = re.compile(r"~(?![01])")
_LIST_INDEX = re.compile(r"0|[1-9][0-9]*")


def identity(value: JsonValue, *, levels: int = MAX_ATTRIBUTES_DEPTH) -> Hashable:
    """Return a key that equals the key of another value exactly if both are the same JSON value.

    Python says ``1 == True``; JSON does not. Text is its own key, which keeps the usual case cheap. Never raises: a
    value nested deeper than `levels` (text nests 0, a list of texts 1) gets a key that no canonical value has.
    """
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (int, float)):
        return _double(value)
    if levels == 0:
        return _TOO_DEEP
    if isinstance(value, list):
        return ("list", *(identity(item, levels=levels - 1) for item in value))
    return ("object", frozenset((name, identity(item, levels=levels - 1)) for name, item in value.items()))


def elements(value: JsonValue) -> frozenset[Hashable]:
    """Return the `identity` of each element of a list; of other values, nothing."""
    return frozenset(map(identity, value)) if isinstance(value, list) else frozenset()


def text_of(value: JsonValue) -> str:
    """Return `value` if it is text.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - to a condition every value that does not fit is the same.
    return value


def number_of(value: JsonValue) -> float:
    """Return `value` as a double if it is a finite number.

    Raises:
        ValueError: It is not; a boolean is no number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = _double(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError("must be a finite number")


def canonical(value: JsonValue, *, levels: int = MAX_ATTRIBUTES_DEPTH) -> JsonValue:
    """Return a copy of `value` that PostgreSQL can store and that reads back the same.

    Whole numbers below 2**53 become integers (5.0 is written 5, as in RFC 8785), all others doubles.

    Raises:
        ValueError: The value contains NaN, an infinity, a NUL or half a surrogate pair, or nests deeper than `levels`;
            says what would be right.
    """
    if isinstance(value, str):
        return storable(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return _canonical_number(_double(value))
    if levels == 0:
        raise ValueError(f"must be nested at most {MAX_ATTRIBUTES_DEPTH} levels deep")
    if isinstance(value, list):
        return [canonical(item, levels=levels - 1) for item in value]
    return {storable(name): canonical(item, levels=levels - 1) for name, item in value.items()}


def storable(text: str) -> str:
    """Return `text` if PostgreSQL can store it.

    Raises:
        ValueError: It contains a NUL or is not Unicode.
    """
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode, without half a surrogate pair") from None
    return text


def size_bytes(value: JsonValue) -> int:
    """Return the size of a canonical value in bytes: of text its UTF-8, of any other value its compact JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode())


def reference_tokens(attribute: str) -> tuple[str, ...]:
    """Split the `attribute` of a condition into the names and indexes that lead to its value, top-level name first.

    Raises:
        ValueError: It is not 1 to 256 bytes that PostgreSQL can store, or is a JSON Pointer with a ``~`` that starts no
            escape; says what would be right.

    Source: RFC 6901, sections 3 and 4. Without a leading ``/`` the whole text is a top-level name.
    """
    if not 1 <= size_bytes(storable(attribute)) <= MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"must be 1 to {MAX_ATTRIBUTE_BYTES} bytes")
    if not attribute.startswith("/"):
        return (attribute,)
    if _BAD_ESCAPE.search(attribute):
        raise ValueError("must write ~ as ~0 and / as ~1 inside a name of a JSON Pointer")
    # In this order: "~01" is the name "~1".
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in attribute[1:].split("/"))


def member(value: JsonValue, token: str) -> JsonValue:
    """Return the member of `value` that one reference token names; None when there is none, as for null."""
    if isinstance(value, dict):
        return value.get(token)
    # Indexes are plain decimal: "01" and "-" (the element after the last) name nothing.
    if isinstance(value, list) and _LIST_INDEX.fullmatch(token) and int(token) < len(value):
        return value[int(token)]
    return None


def _double(number: float) -> float:
    """Return the nearest double; infinity for an integer beyond the range of doubles."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _canonical_number(number: float) -> int | float:
    if not math.isfinite(number):
        raise ValueError("must not contain NaN or an infinite number")
    return int(number) if number.is_integer() and abs(number) <= _MAX_EXACT_INTEGER else number
