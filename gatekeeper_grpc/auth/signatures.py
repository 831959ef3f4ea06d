"""Signatures of calls: HMAC-SHA256 with a client key, valid for 30 seconds, once per process.

EvaluationService says more; `auth.client_calls` verifies them.
"""

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from gatekeeper_grpc.domain.errors import ResourceExhausted

CLOCK_WINDOW_S: Final = 30
UNSIGNED: Final = "UNSIGNED"
KEY_ID: Final = "x-gatekeeper-key-id"
TIMESTAMP: Final = "x-gatekeeper-timestamp"
NONCE: Final = "x-gatekeeper-nonce"
CONTENT_SHA256: Final = "x-gatekeeper-content-sha256"
SIGNATURE: Final = "x-gatekeeper-signature"

# Each value has one spelling: a value with two could be sent twice.
_FORMS: Final = {
    KEY_ID: re.compile(r"ck_[0-9a-f]{20}"),
    TIMESTAMP: re.compile(r"[1-9][0-9]{0,11}"),
    NONCE: re.compile(r"[A-Za-z0-9._~+/=-]{16,128}"),
    CONTENT_SHA256: re.compile(rf"{UNSIGNED}|[0-9a-f]{{64}}"),
    SIGNATURE: re.compile(r"[0-9a-f]{64}"),
}
SIGNATURE_PARTS: Final = frozenset(_FORMS)
"""The keys of the metadata that a signature takes."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature that a client sent with a call, well-formed; the fields in the order of `_FORMS`."""

    key_id: str
    timestamp: str
    nonce: str
    content_sha256: str
    signature: str


def signature_of(sent: Iterable[tuple[str, str | bytes]]) -> Signature | None:
    """Read the signature that these pairs of metadata are; None: a part is missing, malformed or repeated."""
    pairs = list(sent)
    parts = {key: value for key, value in pairs if isinstance(value, str) and _FORMS[key].fullmatch(value)}
    if not len(pairs) == len(parts) == len(_FORMS):
        return None
    return Signature(*(parts[key] for key in _FORMS))


def sign(
    secret: bytes, *, key_id: str, timestamp: str, nonce: str, content_sha256: str, authority: str, method: str
) -> str:
    """Sign a call: lower-case hex of the HMAC-SHA256 of its canonical string, as EvaluationService defines it."""
    canonical = f"{key_id}\n{timestamp}\n{nonce}\n{content_sha256}\n{authority}\n{method}"
    return hmac.digest(secret, canonical.encode(), "sha256").hex()


class Nonces:
    """Remembers used nonces for as long as their signatures are valid. Thread-safe.

    Keeps two sets. When no signature in the older one is valid any more, it is replaced as a whole.

    Args:
        keep_s: How long a nonce is remembered at least; at most twice as long.
        capacity: How many are remembered in each set, at 100 bytes each.
        clock: Monotonic seconds.
    """

    def __init__(self, *, keep_s: float, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()  # guards the three below
        self._newer: set[bytes] = set()
        self._older: set[bytes] = set()
        self._exchanged_at = clock()

    def use(self, key_id: str, nonce: str) -> bool:
        """Use a nonce of a key; return False when it was used before.

        Raises:
            ResourceExhausted: There are too many to remember; forgetting one would allow its call to be sent again.
        """
        mark = hashlib.sha256(f"{key_id}\n{nonce}".encode()).digest()[:16]
        with self._lock:
            self._exchange_if_due()
            if mark in self._newer or mark in self._older:
                return False
            if len(self._newer) >= self._capacity:
                raise ResourceExhausted("too many signed calls within a minute", retry_after_s=self._keep_s)
            self._newer.add(mark)
            return True

    def _exchange_if_due(self) -> None:
        now = self._clock()
        if now - self._exchanged_at < self._keep_s:
            return
        # After twice that time without a call, the newer set has expired as well.
        self._older = self._newer if now - self._exchanged_at < 2 * self._keep_s else set()
        self._newer = set()
        self._exchanged_at = now
