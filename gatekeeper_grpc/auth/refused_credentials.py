"""Why credentials were refused: for the log and a metric. Who called is never told."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from typing import Any, Final

import structlog

from gatekeeper_grpc.domain.errors import Unauthenticated

_log = structlog.get_logger(__name__)

# A client that is refused tries again, often a thousand times a second.
_LOG_EVERY_S: Final = 1.0


class Cause(StrEnum):
    """Why a credential of a client, or an API token, was refused."""

    MISSING = "missing"
    """There is none, and one is required."""
    MALFORMED = "malformed"
    """A part is missing, malformed or repeated, or there is another credential next to a bearer key."""
    UNKNOWN_KEY = "unknown_key"
    """No key has that id and type: it was never created, has expired, or is revoked."""
    UNKNOWN_TOKEN = "unknown_token"  # noqa: S105 - a name
    """No API token has that id: it was never created, has expired, is revoked, or its maker may not call any more."""
    LAPSED = "lapsed"
    """The API token was let in, and then a transaction found it revoked, expired, or beyond what its maker may now:
    another instance changed that less than a second ago, or it happened during the call."""
    BEARER_NOT_ALLOWED = "bearer_not_allowed"
    """A bearer key was sent, and a signature is required."""
    WRONG_SECRET = "wrong_secret"  # noqa: S105 - a name
    """The key, or API token, exists, and its secret is another one."""
    WRONG_SIGNATURE = "wrong_signature"
    """The key exists; the secret is another one, or another text was signed: other authority, method or order."""
    CLOCK = "clock"
    """The signature is right, and the client's clock or the server's is off."""
    BODY_NOT_SIGNED = "body_not_signed"
    """UNSIGNED where the body must be signed, or a hash of a stream, which has none."""
    OTHER_BODY = "other_body"
    """The message is not the one whose hash was signed. Typical: serialised twice, with maps in another order."""
    REPEATED = "repeated"
    """The nonce was used before."""


_OF_TOKENS: Final = frozenset({Cause.MALFORMED, Cause.UNKNOWN_TOKEN, Cause.LAPSED, Cause.WRONG_SECRET})
_OF_CLIENTS: Final = frozenset(Cause) - {Cause.UNKNOWN_TOKEN, Cause.LAPSED}


class RefusedCredentials:
    """Counts refusals by cause, and logs each cause at most once a second. Thread-safe.

    Args:
        clock: Monotonic seconds.
        event: What the log calls a refusal.
        causes: What is counted.
        error: Makes the error of every refusal.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        event: str = "client_credential_refused",
        causes: Collection[Cause] = _OF_CLIENTS,
        error: Callable[[], Unauthenticated] = Unauthenticated.client,
    ) -> None:
        self._clock = clock
        self._event = event
        self._causes = causes
        self._error = error
        self._lock = threading.Lock()  # guards the three below
        self._counts: Counter[Cause] = Counter()
        self._unlogged: Counter[Cause] = Counter()
        self._logged_at: dict[Cause, float] = {}

    def refuse(self, cause: Cause, **seen: Any) -> Unauthenticated:
        """Count a refusal and return the error to raise, which is the same for every cause.

        Args:
            cause: Why.
            seen: What helps an operator to find the fault: never a secret, a signature or a context.
        """
        count = self._count(cause)
        if count:
            _log.warning(self._event, cause=cause.value, count=count, **seen)
        return self._error()

    def counts(self) -> Mapping[Cause, int]:
        """Return how many credentials were refused since the start, by cause; every cause has a count."""
        with self._lock:
            return {cause: self._counts[cause] for cause in Cause if cause in self._causes}

    def _count(self, cause: Cause) -> int:
        """Count a refusal; return how many of its cause the next log line stands for, 0 if none is due."""
        with self._lock:
            self._counts[cause] += 1
            self._unlogged[cause] += 1
            now = self._clock()
            if now - self._logged_at.get(cause, -_LOG_EVERY_S) < _LOG_EVERY_S:
                return 0
            self._logged_at[cause] = now
            return self._unlogged.pop(cause)


def refused_api_tokens() -> RefusedCredentials:
    """Return what counts and logs refused API tokens."""
    return RefusedCredentials(event="api_token_refused", causes=_OF_TOKENS, error=Unauthenticated.access_token)
