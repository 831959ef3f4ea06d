"""Encrypts what the database keeps and must not tell: client secrets and stored answers (AES-256-GCM)."""

import hashlib
import hmac
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gatekeeper_grpc.auth.keys import KeyRing, SigningKey

_VERSION: Final = b"\x01"
_NONCE_BYTES: Final = 12


class SealError(ValueError):
    """Sealed bytes cannot be opened: their key is not in the ring, or they were altered."""


class DataKeys:
    """Seals under the newest key of a ring and opens under any of them.

    Sealed bytes name their key, so that a ring can be rotated: put the new key in front, re-wrap, drop the old one.
    """

    def __init__(self, ring: KeyRing) -> None:
        # A secret is text of 32 bytes or more; its digest is the 32 random bytes that AES-256 takes.
        self._ciphers = {key.kid: AESGCM(hashlib.sha256(key.secret.encode()).digest()) for key in ring.keys}
        self._newest = ring.newest.kid
        self.fingerprints = tuple(map(_fingerprint, ring.keys))
        """Public names of the keys, newest first: the same wherever a key is, and no help in guessing it."""

    def seal(self, plain: bytes) -> bytes:
        """Encrypt and authenticate: version, length of the key's name, its name, nonce, ciphertext."""
        header = self._header(self._newest)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return header + nonce + self._ciphers[self._newest].encrypt(nonce, plain, header)

    def open(self, sealed: bytes) -> bytes:
        """Undo `seal`; `SealError` when no key fits or a byte was altered."""
        kid = self.key_of(sealed)
        header = sealed[: 2 + sealed[1]]
        nonce, ciphertext = sealed[len(header) :][:_NONCE_BYTES], sealed[len(header) + _NONCE_BYTES :]
        try:
            return self._ciphers[kid].decrypt(nonce, ciphertext, header)
        except (KeyError, InvalidTag, ValueError) as exc:
            raise SealError(f"data sealed under key {kid!r} cannot be opened") from exc

    def rewrap(self, sealed: bytes) -> bytes:
        """Seal the same under the newest key, so that the others are not needed for it."""
        return self.seal(self.open(sealed))

    @property
    def newest_header(self) -> bytes:
        """What everything sealed under the newest key, and nothing else, begins with."""
        return self._header(self._newest)

    @staticmethod
    def key_of(sealed: bytes) -> str:
        """Return the name of the key that bytes are sealed under."""
        if sealed[:1] != _VERSION or len(sealed) < 2:  # noqa: PLR2004 - version and length
            raise SealError("these are not sealed bytes")
        return sealed[2 : 2 + sealed[1]].decode(errors="replace")

    @staticmethod
    def _header(kid: str) -> bytes:
        name = kid.encode()
        return _VERSION + bytes((len(name),)) + name


def _fingerprint(key: SigningKey) -> str:
    return hmac.digest(key.secret.encode(), b"gatekeeper data key fingerprint", "sha256")[:8].hex()
