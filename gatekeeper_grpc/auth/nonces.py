"""Used nonces of signed calls: what one process remembers, and what all instances do."""

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from gatekeeper_grpc.auth.signatures import CLOCK_WINDOW_S
from gatekeeper_grpc.domain.errors import ResourceExhausted, Unavailable

# A signature is valid from CLOCK_WINDOW_S before its time to CLOCK_WINDOW_S after it, and clocks may be set.
KEEP_S: Final = 2 * CLOCK_WINDOW_S + 5
# 8,000 signed calls a second for a minute, at 100 bytes each.
_CAPACITY: Final = 500_000


class Nonces:
    """Remembers used nonces for as long as their signatures are valid. Thread-safe.

    Keeps two sets. When no signature in the older one is valid any more, it is replaced as a whole.

    Args:
        keep_s: How long a nonce is remembered at least; at most twice as long.
        capacity: How many are remembered in each set, at 100 bytes each.
        clock: Monotonic seconds.
    """

    def __init__(
        self, *, keep_s: float = KEEP_S, capacity: int = _CAPACITY, clock: Callable[[], float] = time.monotonic
    ) -> None:
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
        mark = mark_of(key_id, nonce)
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


class NonceStore(Protocol):
    """Remembers nonces for all instances."""

    def use(self, mark: bytes, *, keep_s: float) -> bool:
        """Use a nonce; return False when any instance has used it within the last `keep_s`.

        Raises:
            Unavailable: The store cannot be asked.
        """
        ...


class SharedNonces:
    """Used nonces that all instances remember, and this process as well. Thread-safe.

    Args:
        own: Those of this process, which count while the store is away, and after it has lost what it knew.
        store: Those of all instances.
        is_strict: Whether calls are refused while the store is away.
    """

    def __init__(self, own: Nonces, store: NonceStore, *, is_strict: bool) -> None:
        self._own = own
        self._store = store
        self._is_strict = is_strict
        self._lock = threading.Lock()  # guards _unshared
        self._unshared = 0

    def use(self, key_id: str, nonce: str) -> bool:
        """Use a nonce of a key; return False when it was used before. Waits for the store, at most 50 ms.

        Raises:
            ResourceExhausted: There are too many to remember.
            Unavailable: The store is away, and such calls are refused. The nonce may count as used.
        """
        is_new = self._is_new_to_all(key_id, nonce)
        return self._own.use(key_id, nonce) and is_new

    def unshared(self) -> int:
        """Return how many nonces were compared with those of this process alone, or refused, for lack of the store."""
        return self._unshared

    def _is_new_to_all(self, key_id: str, nonce: str) -> bool:
        try:
            return self._store.use(mark_of(key_id, nonce), keep_s=KEEP_S)
        except Unavailable as exc:
            with self._lock:
                self._unshared += 1
            if self._is_strict:
                raise Unavailable(
                    "nobody can tell whether this signed call was sent before: sign it again and send it later",
                    retry_after_s=exc.retry_after_s,
                ) from exc
            return True


def mark_of(key_id: str, nonce: str) -> bytes:
    """Return what is remembered of a nonce: 16 bytes that no other nonce has, of any key."""
    return hashlib.sha256(f"{key_id}\n{nonce}".encode()).digest()[:16]
