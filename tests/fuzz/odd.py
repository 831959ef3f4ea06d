"""Makes requests odd: boundary values in any field, damaged bytes on the wire, metadata that nobody expects."""

from collections.abc import Iterator
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict

from tests.fuzz.contract import Message
from tests.fuzz.world import ODD_USER_IDS

Metadata = tuple[tuple[str, str | bytes], ...]

_LENGTHS = (63, 64, 65, 128, 129, 255, 256, 257, 1_023, 1_024, 1_025, 4_096, 70_000)
_STRINGS = (
    *ODD_USER_IDS,
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "A",
        ".",
        "-",
        "_a",
        "a" * 127,
        "é" * 64,
        "\ufeff",
        "\u200b",
        "\x1b[31m",
        "\u202eabc",
        "👩‍👩‍👧",
        "\n",
        "\r\n",
        "a,b",
        "*",
    ),
    *(
        "'; DROP TABLE feature_flags; --",
        "{}",
        "[]",
        '{"a":1}',
        "1e400",
        "NaN",
        "-1",
        "2026-02-30T00:00:00Z",
        "9" * 400,
    ),
    *("00000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-00000000000G", "attributes.", "attributes.a.b"),
    *(
        "password_hash",
        "token_epoch",
        "admin_id",
        "etag",
        "revision",
        "gatekeeper",
        "1.2",
        "v1.2.3",
        "~0~2",
        "/~",
        "//",
    ),
)
_INTEGERS = (0, 1, -1, 2, 50, 99, 100, 101, 999, 1_000, 1_001, 1 << 30, (1 << 31) - 1, -(1 << 31))
_LONG_INTEGERS = (*_INTEGERS, 1 << 31, (1 << 53) + 1, (1 << 62), (1 << 63) - 1, -(1 << 63))
_DOUBLES = (0.0, -0.0, 1.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 2.0**53)
_LONG_TYPES = frozenset({FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_SINT64})
# Protobuf itself refuses messages that are nested 100 deep, and a level is up to three messages.
_DEPTHS = (1, 2, 4, 5, 6, 20)
_COUNTS = (2, 33, 65, 1_001)
_HUGE_BYTES = ((256 << 10) + 1, (1 << 20), (4 << 20) + 1, (8 << 20) + 1)


# --- In a field ------------------------------------------------------------------------------------------------------


def make_odd(message: Message, random: Random) -> None:
    """Put an odd value in one to three fields of a message, wherever they are, set or not."""
    for _ in range(random.randint(1, 3)):
        owner, field = random.choice([*_fields(message)] or [(message, None)])
        if field is not None:
            _spoil(owner, field, random)


def _fields(message: Message, depth: int = 0) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Find all fields of a message and of the messages in it; a few of each list."""
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.message_type is None or field.message_type.GetOptions().map_entry or depth > 5:
            continue
        inner = getattr(message, field.name)
        parts = inner[:3] if field.is_repeated else [inner] if message.HasField(field.name) else []
        for part in parts:
            yield from _fields(part, depth + 1)


def _spoil(message: Message, field: FieldDescriptor, random: Random) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _spoil_map(message, field, random)
    elif field.is_repeated:
        _spoil_list(message, field, random)
    elif field.message_type is not None:
        _spoil_message(getattr(message, field.name), random)
    else:
        setattr(message, field.name, _value(field, random))


def _spoil_list(message: Message, field: FieldDescriptor, random: Random) -> None:
    items = getattr(message, field.name)
    kept = [*items[:1]]
    if random.random() < 0.3:
        message.ClearField(field.name)
    elif kept:
        items.extend(kept * random.choice(_COUNTS))
    elif field.message_type is not None:
        items.add()
    else:
        items.extend(_value(field, random) for _ in range(random.choice(_COUNTS)))


def _spoil_message(message: Message, random: Random) -> None:
    choice = random.random()
    if message.DESCRIPTOR.full_name == "google.protobuf.Value" and choice < 0.7:
        ParseDict(_json(random, depth=random.choice(_DEPTHS)), message)
    elif choice < 0.4:
        message.Clear()
    else:
        message.SetInParent()
        for field in message.DESCRIPTOR.fields:
            if field.message_type is None and not field.is_repeated and random.random() < 0.5:
                setattr(message, field.name, _value(field, random))


def _spoil_map(message: Message, field: FieldDescriptor, random: Random) -> None:
    if message.DESCRIPTOR.full_name == "google.protobuf.Struct":
        names = random.sample(_STRINGS, random.choice((1, 3, 20)))
        message.Clear()
        ParseDict({name: _json(random, depth=random.choice(_DEPTHS)) for name in names}, message)
    else:
        message.ClearField(field.name)


def _json(random: Random, *, depth: int) -> Any:
    value: Any = random.choice(
        (None, True, 1e300, 7, "x" * random.choice((1, 256, 257, 17_000)), random.choice(_STRINGS))
    )
    for _ in range(depth - 1):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def _value(field: FieldDescriptor, random: Random) -> Any:
    """Choose an odd value for the type of a field."""
    if field.enum_type is not None:
        return random.choice((0, 1, 2, 5, 99, -1, (1 << 31) - 1))
    if field.type == FieldDescriptor.TYPE_STRING:
        return random.choice(_STRINGS) if random.random() < 0.7 else "a" * random.choice(_LENGTHS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.randbytes(random.choice((0, 1, 31, 32, 33, 70_000)))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return random.random() < 0.5
    if field.type in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}:
        return random.choice(_DOUBLES)
    return random.choice(_LONG_INTEGERS if field.type in _LONG_TYPES else _INTEGERS)


# --- On the wire -----------------------------------------------------------------------------------------------------


def damaged(data: bytes, random: Random) -> bytes:
    """Damage a serialised message in one to three places; an empty one becomes a few random bytes."""
    if not data:
        return random.randbytes(random.randint(1, 16))
    for _ in range(random.randint(1, 3)):
        data = _damage(data, random)
    return data


def _damage(data: bytes, random: Random) -> bytes:
    at, to = sorted((random.randrange(len(data) + 1), random.randrange(len(data) + 1)))
    return random.choice(
        (
            data[:at],
            data[:at] + random.randbytes(random.randint(1, 8)) + data[at:],
            data[:at] + data[to:],
            data[:to] + data[at:to] + data[to:],
            data[:at] + b"\xff" * 11 + data[at:],
            data + random.choice((b"\xa2\x06\x03abc", b"\x0b", b"\x0c", b"\xf8\xff\xff\xff\xff\x01\x01")),
            data[:at] + bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :],
        )
    )


def huge(random: Random) -> bytes:
    """Make a message above a limit: one field that no message has, as long as it takes."""
    size = random.choice(_HUGE_BYTES)
    return b"\xfa\x7f" + _varint(size) + bytes(size)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*parts, number))


def odd_metadata(random: Random, token: str) -> Metadata:
    """Make metadata that no client sends; the token, if it is in it, is a good one."""
    good = ("authorization", f"Bearer {token}")
    signed = (
        ("x-gatekeeper-key-id", random.choice(("", "a", "00000000-0000-4000-8000-000000000000"))),
        ("x-gatekeeper-timestamp", random.choice(("0", "x", "9" * 30, "-1", "1767225600"))),
        ("x-gatekeeper-nonce", random.choice(("", "n" * 16, "n" * 4_000))),
        ("x-gatekeeper-content-sha256", random.choice(("", "UNSIGNED", "0" * 64))),
        ("x-gatekeeper-signature", random.choice(("", "0" * 64, "v1=x"))),
    )
    choices: tuple[Metadata, ...] = (
        (),
        (("authorization", ""),),
        (("authorization", token),),
        (("authorization", f"bearer  {token} "),),
        (("authorization", f"Basic {token}"),),
        (("authorization", f"Bearer {token[:-2]}"),),
        (("authorization", f"Bearer {token}="),),
        (good, good),
        (good, ("authorization-bin", b"\x00\xff")),
        (good, ("trace-bin", random.randbytes(64)), ("grpc-trace-bin", b"\x00")),
        (good, ("traceparent", "00-zz-zz-zz"), ("x-request-id", "a" * 1_000)),
        (good, ("x-forwarded-for", "127.0.0.1, ::1"), ("content-language", "tlh")),
        (good, ("a" * 200, "b" * 2_000)),
        (good, *signed),
        (good, *random.sample(signed, 2)),
    )
    return random.choice(choices)
