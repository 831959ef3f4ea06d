"""Signed calls: HMAC-SHA256 under a client key, good once, within 30 seconds. EvaluationService tells clients how.

A signature is verified on the worker from metadata alone; whether the body is the one that was signed is found out when
it has arrived, by `SignedCall.check_body`.
"""

import hashlib
import hmac
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

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

# One way to write each: what has two forms could be sent twice.
_FORMS: Final = {
    KEY_ID: re.compile(r"ck_[0-9a-f]{20}"),
    TIMESTAMP: re.compile(r"[1-9][0-9]{0,11}"),
    NONCE: re.compile(r"[A-Za-z0-9._~+/=-]{16,128}"),
    CONTENT_SHA256: re.compile(rf"{UNSIGNED}|[0-9a-f]{{64}}"),
    SIGNATURE: re.compile(r"[0-9a-f]{64}"),
}
# For a key that does not exist: its signature is computed all the same, or the time of the answer would tell.
_NOBODY: Final = b"\0" * 43


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a client sends with a call, well-formed."""

    key_id: str
    timestamp: str
    nonce: str
    content_sha256: str
    signature: str


def signature_in(metadata: Iterable[tuple[str, str | bytes]]) -> Signature | None:
    """Read the signature of a call; None when nothing of one was sent.

    Raises:
        Unauthenticated: A part is missing, malformed, or there twice.
    """
    sent = [(key, value) for key, value in metadata if key in _FORMS]
    if not sent:
        return None
    parts = dict(sent)
    if len(sent) != len(_FORMS) or parts.keys() != _FORMS.keys():
        raise Unauthenticated.signature()
    for key, form in _FORMS.items():
        if not isinstance(parts[key], str) or not form.fullmatch(str(parts[key])):
            raise Unauthenticated.signature()
    key_id, timestamp, nonce, content_sha256, signature = (str(parts[key]) for key in _FORMS)
    return Signature(
        key_id=key_id, timestamp=timestamp, nonce=nonce, content_sha256=content_sha256, signature=signature
    )


def sign(secret: bytes, *, key_id: str, timestamp: str, nonce: str, content_sha256: str, method: str) -> str:
    """Sign a call: lower-case hex of the HMAC-SHA256 of its canonical string, as EvaluationService defines both."""
    canonical = f"{key_id}\n{timestamp}\n{nonce}\n{content_sha256}\n{method}"
    return hmac.digest(secret, canonical.encode(), "sha256").hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedCall:
    """A call whose signature is good: by which key, and for which body."""

    key: VerificationKey
    content_sha256: str

    @property
    def key_id(self) -> str:
        """The public name of the key."""
        return self.key.key_id

    def check_body(self, body: bytes) -> None:
        """Refuse a body other than the one that was signed."""
        if self.content_sha256 == UNSIGNED:
            return
        if not hmac.compare_digest(hashlib.sha256(body).hexdigest(), self.content_sha256):
            raise Unauthenticated.signature()


class Nonces:
    """Remembers which nonces were used, for as long as their signatures are good. Threads share it.

    Two sets, exchanged when the older has outlived every signature in it: nothing is remembered one by one.

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
        """Use a nonce of a key; False when it was used before.

        Raises:
            ResourceExhausted: There are too many to remember; forgetting one would let its call be sent again.
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
        # Silent for twice as long: the newer ones are out of date, too.
        self._older = self._newer if now - self._exchanged_at < 2 * self._keep_s else set()
        self._newer = set()
        self._exchanged_at = now


class ClientKeys(Protocol):
    """Knows the keys that are good, without waiting."""

    def find(self, key_id: str) -> VerificationKey | None:
        """Return a key that is good now."""
        ...

    def note_use(self, key_id: str) -> None:
        """Remember that a key was used."""
        ...


class SignatureVerifier:
    """Verifies the signatures of calls.

    Args:
        keys: The client keys.
        nonces: Those used on this instance; they must be kept for twice the clock window.
        clock: Tells the time, aware.
    """

    def __init__(self, keys: ClientKeys, nonces: Nonces, *, clock: Clock = utc_now) -> None:
        self._keys = keys
        self._nonces = nonces
        self._clock = clock

    def verify(self, sent: Signature, *, method: str) -> SignedCall:
        """Return whose signature it is. Takes tens of microseconds and no I/O.

        Args:
            sent: What came with the call.
            method: Full name, such as "/gatekeeper.v1.EvaluationService/EvaluateFlags".

        Raises:
            Unauthenticated: Not a good signature of a good key, too old, from the future, or sent before; one text.
            ResourceExhausted: This instance cannot remember further nonces.
        """
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
        # The nonce last: only who holds a key can make us remember one.
        if key is None or not matches or not is_timely or not self._nonces.use(sent.key_id, sent.nonce):
            raise Unauthenticated.signature()
        self._keys.note_use(key.key_id)
        return SignedCall(key=key, content_sha256=sent.content_sha256)


class SignatureAuthenticator:
    """Authenticates calls by their signature, and refuses unsigned ones where a signature is required.

    Args:
        verifier: Verifies signatures.
        required: Whether calls without one are refused.
        allow_unsigned_bodies: Whether the signature of a unary call may leave its body out; that of a stream always
            does.
    """

    def __init__(self, verifier: SignatureVerifier, *, required: bool, allow_unsigned_bodies: bool) -> None:
        self._verifier = verifier
        self._required = required
        self._allow_unsigned_bodies = allow_unsigned_bodies

    def authenticate(
        self, metadata: Iterable[tuple[str, str | bytes]], *, method: str, is_stream: bool
    ) -> SignedCall | None:
        """Return the signed call; None if it is not signed and need not be.

        Raises:
            Unauthenticated: Not signed well, or not at all where that is required.
            ResourceExhausted: As `SignatureVerifier.verify`.
        """
        sent = signature_in(metadata)
        if sent is None and not self._required:
            return None
        if sent is None or not self._covers_enough(sent, is_stream=is_stream):
            raise Unauthenticated.signature()
        return self._verifier.verify(sent, method=method)

    def _covers_enough(self, sent: Signature, *, is_stream: bool) -> bool:
        unsigned_body = sent.content_sha256 == UNSIGNED
        if is_stream:
            return unsigned_body
        return self._allow_unsigned_bodies or not unsigned_body
