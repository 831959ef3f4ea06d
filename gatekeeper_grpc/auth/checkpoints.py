"""Audit checkpoints: signs the head of the audit log, and verifies checkpoints offline (Ed25519, RFC 8032)."""

import secrets
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gatekeeper_grpc.domain.audit import AuditCheckpoint, AuditHead, checkpoint_statement

KEY_BYTES: Final = 32


class CheckpointError(Exception):
    """A checkpoint is not valid; the message says why."""


class CheckpointSigner:
    """Signs checkpoints with the key of this installation.

    Args:
        seed: The private key, 32 random bytes.
        clock: Returns the current aware time.
    """

    def __init__(self, seed: bytes, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self.use(seed)

    def use(self, seed: bytes) -> None:
        """Sign with another key from now on."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a key from base64 of 32 bytes.

        Raises:
            ValueError: It is not that; the text never repeats the key.
        """
        return cls(key_from_text(text))

    @property
    def public_key(self) -> bytes:
        """The key that verifies the signatures, 32 bytes."""
        return _public(self._key)

    def sign(self, head: AuditHead) -> AuditCheckpoint:
        """Sign the head of the log at the current time."""
        create_time, key = self._clock(), self._key
        signature = key.sign(checkpoint_statement(head, create_time))
        return AuditCheckpoint(head=head, create_time=create_time, signature=signature, public_key=_public(key))


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def verify_checkpoint(checkpoint: AuditCheckpoint, public_key: bytes) -> None:
    """Verify that the owner of `public_key`, which the caller trusts, signed exactly this checkpoint.

    The key inside the checkpoint proves nothing: a forger puts their own key there.

    Raises:
        CheckpointError: It was signed with another key, or altered.
    """
    if checkpoint.public_key != public_key:
        raise CheckpointError("the checkpoint was signed with another key")
    statement = checkpoint_statement(checkpoint.head, checkpoint.create_time)
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(checkpoint.signature, statement)
    except InvalidSignature:
        raise CheckpointError("the signature does not match: the checkpoint was altered") from None


def key_from_text(text: str) -> bytes:
    """Read a private or public key from base64.

    Raises:
        ValueError: It is not 32 bytes in base64; the text never repeats the key.
    """
    try:
        key = b64decode(text.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key must be {KEY_BYTES} bytes in base64; `openssl rand -base64 {KEY_BYTES}` makes one")
    return key


def key_to_text(key: bytes) -> str:
    """Write a key in base64."""
    return b64encode(key).decode()


def new_signing_key() -> str:
    """Make a private key."""
    return key_to_text(secrets.token_bytes(KEY_BYTES))
