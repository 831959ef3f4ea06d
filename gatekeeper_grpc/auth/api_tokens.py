"""The valid API tokens, in memory: authenticating a call never waits for the database."""

import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final, Protocol

import structlog

from gatekeeper_grpc.auth.last_uses import LastUses
from gatekeeper_grpc.auth.refused_credentials import Cause, RefusedCredentials
from gatekeeper_grpc.auth.tokens import Clock, utc_now
from gatekeeper_grpc.domain.api_token import LiveApiToken
from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.errors import GatekeeperError, Unavailable

_log = structlog.get_logger(__name__)

PREFIX: Final = "gka_"
"""What every API token begins with, and no other credential."""

_ID_BYTES: Final = 10
_SECRET_BYTES: Final = 32
_FORM: Final = re.compile(r"gka_(?P<unique>[0-9a-f]{20})_[A-Za-z0-9_-]{43}")
# The hash of an unknown token: the response time must not reveal which tokens exist.
_NOTHING: Final = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewApiToken:
    """A new token: its public id, the secret that its holder is shown once, and the hash of the secret."""

    token_id: str
    secret: str = field(repr=False)
    secret_hash: bytes = field(repr=False)


def new_api_token() -> NewApiToken:
    """Make a token: its id, by which it is found, and 32 random bytes in base64url without padding."""
    unique = secrets.token_hex(_ID_BYTES)
    secret = f"{PREFIX}{unique}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return NewApiToken(token_id=f"at_{unique}", secret=secret, secret_hash=_hash_of(secret))


def _hash_of(secret: str) -> bytes:
    """Return what is kept of a secret. It is random, so a fast hash without a salt does."""
    return hashlib.sha256(secret.encode()).digest()


class ApiTokenRecords(Protocol):
    """Keeps tokens. A Protocol: `auth` does not import the store."""

    def load_live(self) -> Iterable[LiveApiToken]:
        """Read every token that is neither revoked nor expired, and whose maker may call."""
        ...

    def record_uses(self, last_used: Mapping[str, datetime]) -> None:
        """Record when tokens were last used."""
        ...


class ApiTokenCache:
    """Holds the valid tokens with the roles of their makers, and collects when each was last used.

    It may be a second old. What it lets in is compared with the database in each transaction of the call
    (`store.postgres.caller_check`), so that a revocation acts at once.

    Args:
        store: Keeps the tokens.
        refusals: Keeps why tokens were refused.
        clock: Returns the current aware time.
    """

    def __init__(self, store: ApiTokenRecords, refusals: RefusedCredentials, *, clock: Clock = utc_now) -> None:
        self._store = store
        self._refusals = refusals
        self._clock = clock
        # Replaced whole: readers need no lock. None: not loaded yet.
        self._tokens: Mapping[str, LiveApiToken] | None = None
        self._refreshing = threading.Lock()  # orders refreshes: an older load never replaces a newer one
        self.uses = LastUses(store.record_uses, clock=clock)

    def verify(self, secret: str) -> Caller:
        """Return the caller that a token stands for. Takes microseconds and no I/O.

        Raises:
            Unauthenticated: The token is not valid; one text for every cause.
            Unavailable: It may be valid.
        """
        found = _FORM.fullmatch(secret)
        if found is None:
            raise self._refusals.refuse(Cause.MALFORMED)
        if self._tokens is None:
            raise Unavailable.credentials()
        token_id = f"at_{found['unique']}"
        token = self._tokens.get(token_id)
        matches = hmac.compare_digest(_hash_of(secret), token.secret_hash if token else _NOTHING)
        if token is None or token.expire_time <= self._clock():
            raise self._refusals.refuse(Cause.UNKNOWN_TOKEN, token_id=token_id)
        if not matches:
            raise self._refusals.refuse(Cause.WRONG_SECRET, token_id=token_id)
        self.uses.note(token.token_id)
        return token.caller()

    def note_lapsed(self, caller: Caller) -> None:
        """Count and log a call that was refused after its API token was let in; nothing if it has none."""
        if caller.api_token is not None:
            self._refusals.refuse(Cause.LAPSED, token_id=caller.api_token.token_id)

    def refresh(self) -> None:
        """Load the tokens.

        Raises:
            GatekeeperError: The store cannot be read; the tokens stay as they are.
        """
        with self._refreshing:
            self._tokens = MappingProxyType({token.token_id: token for token in self._store.load_live()})

    def refresh_after_write(self) -> None:
        """Apply a durable change of a token on this instance. Never raises: the next `refresh` tries again."""
        try:
            self.refresh()
        except GatekeeperError as exc:
            _log.warning("api_tokens_not_refreshed", reason=exc.reason, error=str(exc))
