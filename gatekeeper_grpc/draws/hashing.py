"""The hash of all draws: MD5, of which the first four bytes count."""

import sys
from array import array
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

try:
    # CPython's own MD5 takes half the time of OpenSSL's (264 against 510 ns) and is available under FIPS rules. It
    # places units in a draw; no security depends on it.
    from _md5 import md5  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports] - not in typeshed
except ImportError:  # pragma: no cover - interpreters built without it
    from functools import partial
    from hashlib import md5 as openssl_md5

    md5 = partial(openssl_md5, usedforsecurity=False)

DIGEST_BYTES = 16
# For the loops that write out `position_of`, or a part of it.
new_hash: Callable[[bytes], Any] = md5
first_uint32 = Struct(">I").unpack_from


def first_uint32s(digests: Sequence[bytes]) -> "array[int]":
    """Return `first_uint32` of many digests, in a third of the time."""
    numbers = array("I", b"".join(digests))[:: DIGEST_BYTES // 4]
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def position_of(unit: bytes, salt: bytes) -> int:
    """Return where a unit stands in the draws of a salt, in thousandths of a per cent: ``[0, 100_000)``.

    A flag draws the units below its weight. For whole per cents that is the rule of the 100 buckets, to the bit.
    """
    # The first 8 hex digits of the digest are its first 4 bytes, big-endian.
    number: int = first_uint32(new_hash(unit + salt).digest())[0]
    return number % 100 * 1_000 + number // 100 % 1_000
