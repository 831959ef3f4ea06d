"""Passwords: how they are hashed (bcrypt), and checked without telling an attacker which accounts exist.

A password is the exact bytes of its UTF-8. Nothing is normalised: clients in every language need no rule, and no hash
depends on a version of Unicode.
"""

import re
import secrets
import threading

import bcrypt

from gatekeeper_grpc.domain.errors import InvalidArgument

DEFAULT_COST = 12
MIN_COST = 10
MAX_COST = 16
MAX_PASSWORD_BYTES = 72

# What bcrypt itself would accept of a stored hash, at costs that do not take minutes. Any other is nobody's hash.
_HASH = re.compile(r"\$2[aby]\$1[0-6]\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
# Without what looks alike; read from a terminal and typed elsewhere.
_LEGIBLE = "abcdefghjkmnpqrstuvwxyz23456789"


class Passwords:
    """Hashes and verifies passwords. Each takes a core for 2**cost rounds: about 220 ms at cost 12.

    To be shared: whoever asks, one password is worked on at a time, so that evaluation keeps the other cores. Callers
    wait for their turn, so they belong on pools of few workers.

    Args:
        cost: bcrypt's, 10 to 16, for hashes made from now on and for checks that have no hash to check against.
    """

    def __init__(self, *, cost: int = DEFAULT_COST) -> None:
        if not MIN_COST <= cost <= MAX_COST:
            raise ValueError(f"the bcrypt cost must be {MIN_COST} to {MAX_COST}, not {cost}")
        self._cost = cost
        self._turn = threading.Lock()  # guards a core
        # Takes as long to check as any other, and no password is known to match it.
        self._decoy = bcrypt.gensalt(cost) + b"." * 31

    def check(self, password: str, *, field: str = "password") -> None:
        """Refuse what cannot be set: `InvalidArgument` unless it is 1 to 72 bytes of UTF-8 without NUL."""
        if not _is_hashable(password.encode()):
            raise InvalidArgument.of(field, f"must be 1 to {MAX_PASSWORD_BYTES} bytes of UTF-8 without NUL")

    def hash(self, password: str, *, field: str = "password") -> str:
        """Hash a password that is being set.

        Args:
            password: 1 to 72 bytes of UTF-8, without NUL.
            field: The request field that an error names.

        Raises:
            InvalidArgument: It has another size or holds NUL.
        """
        self.check(password, field=field)
        with self._turn:
            return bcrypt.hashpw(password.encode(), bcrypt.gensalt(self._cost)).decode()

    def verify(self, password: str, password_hash: str | None) -> bool:
        """Tell whether a password is the one that was hashed.

        Does the work of one check whatever is wrong: with no hash (nobody has that name) or a malformed one, and with a
        password that cannot have been set. Only a hash of another cost than today's takes another time.
        """
        candidate = password.encode()
        if password_hash is None or not _HASH.fullmatch(password_hash) or not _is_hashable(candidate):
            self._matches(b"", self._decoy)
            return False
        return self._matches(candidate, password_hash.encode())

    def _matches(self, candidate: bytes, password_hash: bytes) -> bool:
        with self._turn:
            return bcrypt.checkpw(candidate, password_hash)


def _is_hashable(password: bytes) -> bool:
    # bcrypt repeats a password with a NUL after it: "abc" and "abc\0abc" would be the same.
    return 0 < len(password) <= MAX_PASSWORD_BYTES and 0 not in password


def generate_password() -> str:
    """Make a password for the first admin: four groups of five legible characters, 99 random bits."""
    groups = ("".join(secrets.choice(_LEGIBLE) for _ in range(5)) for _ in range(4))
    return "-".join(groups)
