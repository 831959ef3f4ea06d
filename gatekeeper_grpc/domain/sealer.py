"""Authenticated encryption, as the store and the cache use it."""

from typing import Protocol


class Sealer(Protocol):
    """Encrypts bytes that are kept outside the process, such as client secrets and snapshots."""

    def seal(self, plain: bytes) -> bytes:
        """Encrypt and authenticate."""
        ...

    def open(self, sealed: bytes) -> bytes:
        """Undo `seal`.

        Raises:
            ValueError: No key fits, or the bytes were altered.
        """
        ...
