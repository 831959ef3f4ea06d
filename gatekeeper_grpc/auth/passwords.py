"""Passwords: which may be set, hashing them (bcrypt), and verifying them without revealing which accounts exist.

A password is the exact bytes of its UTF-8. Nothing is normalised: clients need no rule in any language, and no hash
depends on a version of Unicode.

bcrypt reads 72 bytes. So it is given the base64 of HMAC-SHA256 of the password, keyed with the salt of the hash: 44
bytes that depend on the whole password, and on which a leaked list of plain SHA-256 hashes is of no use. A stored hash
says by its prefix that it was made so; those without a prefix are bcrypt hashes of the password itself.
"""

import hmac
import re
import secrets
import threading
from base64 import b64encode
from typing import Final

import bcrypt

from gatekeeper_grpc.domain.errors import InvalidArgument

DEFAULT_COST = 12
MIN_COST = 10
MAX_COST = 16
MIN_PASSWORD_CHARS: Final = 12
MAX_PASSWORD_CHARS: Final = 1_024
PREHASHED: Final = "hmac-sha256:"
"""Prefix of the hashes that this release makes."""

_PRODUCT: Final = "gatekeeper"
_MAX_BCRYPT_BYTES: Final = 72
_SALT_CHARS: Final = 29
# The hashes that bcrypt accepts, at costs that do not take minutes. Any other text matches no password.
_HASH = re.compile(r"\$2[aby]\$(1[0-6])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
# Without characters that look alike: people read these from a terminal and type them elsewhere.
_LEGIBLE = "abcdefghjkmnpqrstuvwxyz23456789"  # pragma: allowlist secret


class Passwords:
    """Hashes and verifies passwords. Each takes a core for 2**cost rounds: about 220 ms at cost 12.

    Share one instance: it works on one password at a time, so evaluation keeps the other cores. Callers wait for their
    turn, so they belong on pools of few workers.

    Args:
        cost: bcrypt's cost, 10 to 16, for new hashes and, at least, for every check.
    """

    def __init__(self, *, cost: int = DEFAULT_COST) -> None:
        if not MIN_COST <= cost <= MAX_COST:
            raise ValueError(f"the bcrypt cost must be {MIN_COST} to {MAX_COST}, not {cost}")
        self._cost = cost
        self._turn = threading.Lock()  # guards a core

    def check(self, password: str, *, username: str = "", field: str = "password") -> None:
        """Check that a password may be set.

        Args:
            password: The password.
            username: Whose it will be; empty: it is not compared with a name.
            field: The request field that an error names.

        Raises:
            InvalidArgument: It is not 12 to 1,024 characters without NUL, or it is one character repeated, or it
                consists of the username or the name of the product with nothing else but digits and punctuation.
        """
        if not MIN_PASSWORD_CHARS <= len(password) <= MAX_PASSWORD_CHARS or "\0" in password:
            raise InvalidArgument.of(
                field, f"must be {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS:,} characters without NUL"
            )
        folded = password.casefold()
        if len(set(folded)) == 1:
            raise InvalidArgument.of(field, "must not be one character repeated")
        if _is_made_of(folded, username.casefold()) or _is_made_of(folded, _PRODUCT):
            raise InvalidArgument.of(field, "must not be made of the username or the name of the product")

    def hash(self, password: str, *, username: str = "", field: str = "password") -> str:
        """Hash a password that is being set.

        Raises:
            InvalidArgument: As `check`.
        """
        self.check(password, username=username, field=field)
        return self.rehash(password)

    def rehash(self, password: str) -> str:
        """Hash a password that was verified: it may be older than the rules."""
        salt = bcrypt.gensalt(self._cost)
        with self._turn:
            return PREHASHED + bcrypt.hashpw(_prehashed(password, salt), salt).decode()

    def is_outdated(self, password_hash: str) -> bool:
        """Return whether a hash has another form or cost than those that `hash` makes."""
        made = _HASH.fullmatch(password_hash.removeprefix(PREHASHED))
        return made is None or not password_hash.startswith(PREHASHED) or int(made[1]) != self._cost

    def verify(self, password: str, password_hash: str | None, *, highest_cost: int = MIN_COST) -> bool:
        """Return whether a password is the one that was hashed.

        Does the same amount of work in every case: without a hash (the name is unknown), with a malformed hash, with a
        password that cannot have been set, and with a hash of a lower cost.

        Args:
            password: What was typed.
            password_hash: The stored hash; None: there is none.
            highest_cost: The highest cost of any stored hash; the work is at least that, 16 at most.
        """
        target = min(max(self._cost, highest_cost), MAX_COST)
        bcrypt_hash = (password_hash or "").removeprefix(PREHASHED)
        made = _HASH.fullmatch(bcrypt_hash)
        candidate = _candidate(password, bcrypt_hash, is_prehashed=bcrypt_hash != password_hash)
        if made is None or candidate is None:
            self._matches(b"", _decoy(target))
            return False
        matches = self._matches(candidate, bcrypt_hash.encode())
        # 2**cost rounds were done; these add up to the rounds that are missing to 2**target.
        for cost in range(int(made[1]), target):
            self._matches(b"", _decoy(cost))
        return matches

    def _matches(self, candidate: bytes, bcrypt_hash: bytes) -> bool:
        with self._turn:
            return bcrypt.checkpw(candidate, bcrypt_hash)


def _is_made_of(password: str, word: str) -> bool:
    """Return whether a password is a word, once or more, and otherwise only digits, punctuation and spaces."""
    return bool(word) and word in password and not any(map(str.isalpha, password.replace(word, "")))


def _candidate(password: str, bcrypt_hash: str, *, is_prehashed: bool) -> bytes | None:
    """Return the bytes to compare with a hash; None for a password that cannot have been set."""
    if not 0 < len(password) <= MAX_PASSWORD_CHARS:
        return None
    if is_prehashed:
        return _prehashed(password, bcrypt_hash[:_SALT_CHARS].encode())
    plain = password.encode()
    # bcrypt repeats a password with a NUL after it: "abc" and "abc\0abc" would be the same.
    return plain if len(plain) <= _MAX_BCRYPT_BYTES and 0 not in plain else None


def _prehashed(password: str, salt: bytes) -> bytes:
    return b64encode(hmac.digest(salt, password.encode(), "sha256"))


def _decoy(cost: int) -> bytes:
    """Return a hash that takes as long to check as a real one of this cost; no password is known to match it."""
    return b"$2b$%02d$" % cost + b"." * 53


def generate_password() -> str:
    """Make a password for the first admin: four groups of five legible characters, 99 random bits."""
    groups = ("".join(secrets.choice(_LEGIBLE) for _ in range(5)) for _ in range(4))
    return "-".join(groups)
