"""Keys as operators write and rotate them: a list of named secrets, newest first."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

MIN_SECRET_BYTES = 32

_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """One HMAC key. Its text form never shows the secret.

    Args:
        kid: The name by which tokens refer to it, 1 to 64 characters of A-Z a-z 0-9 . _ -
        secret: At least 32 bytes of UTF-8: a shorter one is weaker than the signature (RFC 7518, 3.2).
    """

    kid: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        # No error here or below repeats the input: it may be the secret, written in the wrong position.
        if not _KID.fullmatch(self.kid):
            raise ValueError("the kid must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
        size = len(self.secret.encode())
        if size < MIN_SECRET_BYTES:
            raise ValueError(f"the secret must be at least {MIN_SECRET_BYTES} bytes, not {size}")


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys in use, newest first: the first signs, all verify.

    To rotate while several instances run: append the new key on every instance, then move it to the front on every
    instance, then drop the old key after its last token has expired. A key that is put in front at once signs tokens
    that other instances refuse.
    """

    keys: tuple[SigningKey, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("at least one key is needed")
        if len({key.kid for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same kid")

    @classmethod
    def parse(cls, text: str, *, unnamed_kid: str | None = None) -> Self:
        """Read ``kid:secret[,kid:secret...]``; a secret may contain ":" but no ",". Spaces around an entry are ignored.

        Args:
            text: The ring.
            unnamed_kid: The kid of an entry that is a secret alone; None: there must be no such entry.

        Raises:
            ValueError: An entry is wrong; says which, by position, and what would be right. Never repeats any of it.
        """
        return cls(tuple(_parse_entries(text, unnamed_kid)))

    @property
    def newest(self) -> SigningKey:
        """The key that signs."""
        return self.keys[0]

    @property
    def kids(self) -> tuple[str, ...]:
        """The names of the keys, newest first."""
        return tuple(key.kid for key in self.keys)

    def check_successor(self, ring: "KeyRing") -> None:
        """Check that each name means the same key in a ring that replaces this one.

        Raises:
            ValueError: A name has another secret there. What was made with the old one could not be read.
        """
        before = {key.kid: key.secret for key in self.keys}
        for key in ring.keys:
            if before.get(key.kid, key.secret) != key.secret:
                raise ValueError(f"key {key.kid!r} has another secret than before: give a new key a new name")


def _parse_entries(text: str, unnamed_kid: str | None) -> Iterator[SigningKey]:
    for position, entry in enumerate(text.split(","), start=1):
        kid, colon, secret = entry.strip().partition(":")
        if not colon and unnamed_kid is None:
            raise ValueError(f"key {position} must be written kid:secret")
        if not colon:
            kid, secret = str(unnamed_kid), kid
        try:
            yield SigningKey(kid=kid, secret=secret)
        except ValueError as exc:
            raise ValueError(f"key {position}: {exc}") from None
