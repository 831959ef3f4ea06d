"""Encrypts what the database must not reveal: client secrets and stored responses (AES-256-GCM)."""

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
    """Sealed bytes cannot be decrypted: their key is not in the ring, or they were altered."""


class DataKeys:
    """Encrypts with the newest key of a ring, and decrypts with any of them.

    Sealed bytes name their key, so a ring can be rotated: put the new key in front, rewrap, drop the old key.
    """

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self.use(ring)

    def use(self, ring: KeyRing) -> None:
        """Encrypt and decrypt with other keys from now on.

        Raises:
            ValueError: A key has another secret than before.
        """
        self.ring.check_successor(ring)
        self.ring = ring
        # A secret is text of 32 bytes or more; AES-256 takes exactly 32, so the digest of the secret is the key.
        ciphers = {key.kid: AESGCM(hashlib.sha256(key.secret.encode()).digest()) for key in ring.keys}
        self.fingerprints = tuple(map(_fingerprint, ring.keys))
        """Public names of the keys, newest first. Equal on every instance; reveals nothing of the key."""
        # Both at once: another thread may be encrypting.
        self._keys = ring.newest.kid, ciphers

    def seal(self, plain: bytes) -> bytes:
        """Encrypt and authenticate: version, length of the key's name, its name, nonce, ciphertext."""
        newest, ciphers = self._keys
        header = self._header(newest)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return header + nonce + ciphers[newest].encrypt(nonce, plain, header)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt what `seal` returned.

        Raises:
            SealError: No key fits, or a byte was altered.
        """
        kid, (_, ciphers) = self.key_of(sealed), self._keys
        if kid not in ciphers:
            raise SealError(f"data encrypted with key {kid!r} cannot be decrypted: there is no such key")
        header = sealed[: 2 + sealed[1]]
        nonce, ciphertext = sealed[len(header) :][:_NONCE_BYTES], sealed[len(header) + _NONCE_BYTES :]
        try:
            return ciphers[kid].decrypt(nonce, ciphertext, header)
        except (InvalidTag, ValueError) as exc:
            raise SealError(
                f"data encrypted with key {kid!r} cannot be decrypted: the key has another secret, or data was altered"
            ) from exc

    def rewrap(self, sealed: bytes) -> bytes:
        """Encrypt again with the newest key, so that older keys are not needed; not what a missing key is needed for.

        Raises:
            SealError: Bytes were altered, or their key has another secret.
        """
        return self.seal(self.open(sealed)) if self.key_of(sealed) in self.ring.kids else sealed

    @property
    def newest_header(self) -> bytes:
        """The first bytes of everything that is encrypted with the newest key, and of nothing else."""
        return self._header(self._keys[0])

    @staticmethod
    def key_of(sealed: bytes) -> str:
        """Return the name of the key that bytes are encrypted with.

        Raises:
            SealError: These are not sealed bytes.
        """
        if sealed[:1] != _VERSION or len(sealed) < 2:  # noqa: PLR2004 - version and length
            raise SealError("these are not sealed bytes")
        return sealed[2 : 2 + sealed[1]].decode(errors="replace")

    @staticmethod
    def _header(kid: str) -> bytes:
        name = kid.encode()
        return _VERSION + bytes((len(name),)) + name


def _fingerprint(key: SigningKey) -> str:
    return hmac.digest(key.secret.encode(), b"gatekeeper data key fingerprint", "sha256")[:8].hex()
