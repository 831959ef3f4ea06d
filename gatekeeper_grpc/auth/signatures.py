"""Signatures of calls: HMAC-SHA256 with a client key, valid for 30 seconds, once.

EvaluationService says more; `auth.client_calls` verifies them.
"""

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

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
