"""The valid client keys, in memory: verifying a call never waits for the database."""

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final, Protocol

import structlog

from gatekeeper_grpc.auth.data_keys import SealError
from gatekeeper_grpc.auth.last_uses import LastUses
from gatekeeper_grpc.auth.tokens import Clock, utc_now
from gatekeeper_grpc.domain.client_key import ClientKeyType, RateTier, SealedClientKey, VerificationKey
from gatekeeper_grpc.domain.errors import GatekeeperError, Unavailable
from gatekeeper_grpc.instrumentation.counters import KEY_FOUND, KEY_NOT_FOUND

_log = structlog.get_logger(__name__)

_ID_BYTES: Final = 10
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class NewClientKey:
    """A new key: its public id, the secret that its holder is shown once, and what verifies calls is made of."""

    key_id: str
    secret: str = field(repr=False)
    kept: bytes = field(repr=False)


def new_client_key(kind: ClientKeyType) -> NewClientKey:
    """Make a key with a secret of 32 random bytes in base64url without padding, which signs calls.

    The secret of a bearer key also has the key's id, by which it is found. Only its hash is kept.
    """
    unique, secret = secrets.token_hex(_ID_BYTES), secrets.token_urlsafe(_SECRET_BYTES)
    key_id = f"{kind.prefix}{unique}"
    if kind is ClientKeyType.SIGNING:
        return NewClientKey(key_id=key_id, secret=secret, kept=secret.encode())
    bearer = f"gkc_{unique}_{secret}"
    return NewClientKey(key_id=key_id, secret=bearer, kept=hash_of_bearer(bearer))


def hash_of_bearer(secret: str) -> bytes:
    """Return what is kept of the secret of a bearer key. It is random, so a fast hash does."""
    return hashlib.sha256(secret.encode()).digest()


class ClientKeyRecords(Protocol):
    """Keeps keys. A Protocol: `auth` does not import the store."""

    def load_live(self) -> Iterable[SealedClientKey]:
        """Read every key that is neither revoked nor expired."""
        ...

    def record_uses(self, last_used: Mapping[str, datetime]) -> None:
        """Record when keys were last used."""
        ...


class ClientKeyCache:
    """Holds the valid keys, and collects when each was last used.

    Args:
        store: Keeps the keys.
        unseal: Decrypts a secret.
        clock: Returns the current aware time.
    """

    def __init__(self, store: ClientKeyRecords, unseal: Callable[[bytes], bytes], *, clock: Clock = utc_now) -> None:
        self._store = store
        self._unseal = unseal
        self._clock = clock
        # Replaced whole: readers need no lock. None: not loaded yet.
        self._keys: Mapping[str, VerificationKey] | None = None
        self._refreshing = threading.Lock()  # orders refreshes: an older load never replaces a newer one
        self.uses = LastUses(store.record_uses, clock=clock)

    def find(self, key_id: str) -> VerificationKey | None:
        """Return a valid key; None when there is none of that id.

        Raises:
            Unavailable: There may be one.
        """
        if self._keys is None:
            raise Unavailable.credentials()
        key = self._keys.get(key_id)
        expired = key is not None and key.expire_time is not None and key.expire_time <= self._clock()
        found = None if expired else key
        (KEY_NOT_FOUND if found is None else KEY_FOUND).inc()
        return found

    def has_bearer_keys(self) -> bool:
        """Return whether there is a key that calls send as it is."""
        return any(ClientKeyType.of(key_id) is ClientKeyType.BEARER for key_id in self._keys or ())

    def refresh(self) -> None:
        """Load the keys.

        A secret that cannot be decrypted is logged, and its key is not valid.

        Raises:
            GatekeeperError: The store cannot be read; the keys stay as they are.
        """
        with self._refreshing:
            opened = map(self._opened, self._store.load_live())
            self._keys = MappingProxyType({key.key_id: key for key in opened if key is not None})

    def refresh_after_write(self) -> None:
        """Apply a durable change of a key on this instance. Never raises: the next `refresh` tries again."""
        try:
            self.refresh()
        except GatekeeperError as exc:
            _log.warning("client_keys_not_refreshed", reason=exc.reason, error=str(exc))

    def _opened(self, sealed: SealedClientKey) -> VerificationKey | None:
        try:
            secret = self._unseal(sealed.secret)
        except SealError as exc:
            _log.error("client_key_not_opened", key_id=sealed.key_id, error=str(exc))
            return None
        return VerificationKey(
            key_id=sealed.key_id,
            secret=secret,
            tier=RateTier[sealed.tier.upper()],
            expire_time=sealed.expire_time,
        )
