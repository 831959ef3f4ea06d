"""Signed calls: HMAC-SHA256 with a client key, valid for 30 seconds, once per process; EvaluationService says more.

`verify` needs metadata alone and runs when a call arrives. `use` runs when a worker takes the call: one that is refused
for lack of room may be sent again as it is. `SignedCall.check_body` compares the body with the signed one.
"""

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from gatekeeper_grpc.auth.client_keys import ClientKeyCache
from gatekeeper_grpc.auth.tokens import Clock, utc_now
from gatekeeper_grpc.domain.client_key import VerificationKey
from gatekeeper_grpc.domain.errors import ResourceExhausted, Unauthenticated

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
# The secret of an unknown key: the response time must not reveal which keys exist.
_NOBODY: Final = b"\0" * 43


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature that a client sent with a call, well-formed; the fields in the order of `_FORMS`."""

    key_id: str
    timestamp: str
    nonce: str
    content_sha256: str
    signature: str


def signature_in(metadata: Iterable[tuple[str, str | bytes]]) -> Signature | None:
    """Read the signature of a call; None when no part of one was sent.

    Raises:
        Unauthenticated: A part is missing, malformed or repeated.
    """
    sent = [(key, value) for key, value in metadata if key in _FORMS]
    if not sent:
        return None
    parts = {key: value for key, value in sent if isinstance(value, str) and _FORMS[key].fullmatch(value)}
    if not len(sent) == len(parts) == len(_FORMS):
        raise Unauthenticated.signature()
    return Signature(*(parts[key] for key in _FORMS))


def sign(secret: bytes, *, key_id: str, timestamp: str, nonce: str, content_sha256: str, method: str) -> str:
    """Sign a call: lower-case hex of the HMAC-SHA256 of its canonical string, as EvaluationService defines it."""
    canonical = f"{key_id}\n{timestamp}\n{nonce}\n{content_sha256}\n{method}"
    return hmac.digest(secret, canonical.encode(), "sha256").hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCall:
    """A call with a valid signature: by which key, and for which body."""

    key: VerificationKey
    nonce: str
    content_sha256: str

    @property
    def key_id(self) -> str:
        """The public name of the key."""
        return self.key.key_id

    def check_body(self, body: bytes) -> None:
        """Check that a body is the one that was signed.

        Raises:
            Unauthenticated: It is another one.
        """
        if self.content_sha256 == UNSIGNED:
            return
        if not hmac.compare_digest(hashlib.sha256(body).hexdigest(), self.content_sha256):
            raise Unauthenticated.signature()


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


class SignatureVerifier:
    """Authenticates calls by their signature, and refuses unsigned ones where a signature is required.

    Args:
        keys: The client keys.
        nonces: Those used on this instance; they must be kept for twice the clock window.
        required: Whether calls without a signature are refused.
        allow_unsigned_bodies: Whether the signature of a unary call may leave its body out; that of a stream always
            does.
        clock: Returns the current aware time.
    """

    def __init__(
        self,
        keys: ClientKeyCache,
        nonces: Nonces,
        *,
        required: bool,
        allow_unsigned_bodies: bool,
        clock: Clock = utc_now,
    ) -> None:
        self._keys = keys
        self._nonces = nonces
        self._required = required
        self._allow_unsigned_bodies = allow_unsigned_bodies
        self._clock = clock

    def verify(self, metadata: Iterable[tuple[str, str | bytes]], *, method: str, is_stream: bool) -> SignedCall | None:
        """Return the signed call; None if it is not signed and need not be. Takes tens of microseconds and no I/O.

        It is not known yet whether the call was sent before: `use` it.

        Args:
            metadata: What the client sent.
            method: Full name, such as "/gatekeeper.v1.EvaluationService/EvaluateFlags".
            is_stream: Whether the request or the response is a stream.

        Raises:
            Unauthenticated: The key or the signature is invalid, the time is off, or it is missing where one is
                required; one text.
        """
        sent = signature_in(metadata)
        if sent is None and not self._required:
            return None
        if sent is None or not self._covers_enough(sent, is_stream=is_stream):
            raise Unauthenticated.signature()
        return self._verify(sent, method=method)

    def use(self, signed: SignedCall) -> None:
        """Use a verified call, once: only the holder of a key can make this instance remember a nonce.

        Raises:
            Unauthenticated: It was sent before.
            ResourceExhausted: This instance cannot remember further nonces.
        """
        if not self._nonces.use(signed.key_id, signed.nonce):
            raise Unauthenticated.signature()
        self._keys.note_use(signed.key_id)

    def check_key(self, signed: SignedCall) -> None:
        """Require that the key of a call that is still open is still valid.

        Raises:
            Unauthenticated: It has expired or was revoked.
        """
        if self._keys.find(signed.key_id) is None:
            raise Unauthenticated.signature()

    def _covers_enough(self, sent: Signature, *, is_stream: bool) -> bool:
        unsigned_body = sent.content_sha256 == UNSIGNED
        if is_stream:
            return unsigned_body
        return self._allow_unsigned_bodies or not unsigned_body

    def _verify(self, sent: Signature, *, method: str) -> SignedCall:
        key = self._keys.find(sent.key_id)
        expected = sign(
            key.secret if key else _NOBODY,
            key_id=sent.key_id,
            timestamp=sent.timestamp,
            nonce=sent.nonce,
            content_sha256=sent.content_sha256,
            method=method,
        )
        matches = hmac.compare_digest(expected, sent.signature)
        is_timely = abs(self._clock().timestamp() - int(sent.timestamp)) <= CLOCK_WINDOW_S
        if key is None or not matches or not is_timely:
            raise Unauthenticated.signature()
        return SignedCall(key=key, nonce=sent.nonce, content_sha256=sent.content_sha256)
