"""Passwords: hashes them (bcrypt), and verifies them without revealing which accounts exist.

A password is the exact bytes of its UTF-8. Nothing is normalised: clients need no rule in any language, and no hash
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

# The hashes that bcrypt accepts, at costs that do not take minutes. Any other text matches no password.
_HASH = re.compile(r"\$2[aby]\$1[0-6]\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
# Without characters that look alike: people read these from a terminal and type them elsewhere.
_LEGIBLE = "abcdefghjkmnpqrstuvwxyz23456789"


class Passwords:
    """Hashes and verifies passwords. Each takes a core for 2**cost rounds: about 220 ms at cost 12.

    Share one instance: it works on one password at a time, so evaluation keeps the other cores. Callers wait for their
    turn, so they belong on pools of few workers.

    Args:
        cost: bcrypt's cost, 10 to 16, for new hashes and for checks without a stored hash.
    """

    def __init__(self, *, cost: int = DEFAULT_COST) -> None:
        if not MIN_COST <= cost <= MAX_COST:
            raise ValueError(f"the bcrypt cost must be {MIN_COST} to {MAX_COST}, not {cost}")
        self._cost = cost
        self._turn = threading.Lock()  # guards a core
        # Takes as long to check as a real hash; no password is known to match it.
        self._decoy = bcrypt.gensalt(cost) + b"." * 31

    def check(self, password: str, *, field: str = "password") -> None:
        """Check that a password can be set.

        Raises:
            InvalidArgument: It is not 1 to 72 bytes of UTF-8 without NUL.
        """
        if not _is_hashable(password.encode()):
            raise InvalidArgument.of(field, f"must be 1 to {MAX_PASSWORD_BYTES} bytes of UTF-8 without NUL")

    def hash(self, password: str, *, field: str = "password") -> str:
        """Hash a password that is being set.

        Args:
            password: 1 to 72 bytes of UTF-8, without NUL.
            field: The request field that an error names.

        Raises:
            InvalidArgument: As `check`.
        """
        self.check(password, field=field)
        with self._turn:
            return bcrypt.hashpw(password.encode(), bcrypt.gensalt(self._cost)).decode()

    def verify(self, password: str, password_hash: str | None) -> bool:
        """Return whether a password is the one that was hashed.

        Does the work of one check in every case: without a hash (the name is unknown), with a malformed hash,
        and with a password that cannot have been set. Only a hash of another cost takes another time.
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
