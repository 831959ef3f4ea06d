"""When an open call ends although its client goes on: by its silence, its age, or the end of its credential."""

import time
from collections.abc import Callable
from math import inf

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.transport.message_timeout import MessageTimeout
from gatekeeper_grpc.wire.status import RequestTimeout

# How long a worker that waits for a message does not look at the credential of its call.
_CHECK_INTERVAL_S = 1.0
_TOO_OLD = "this stream was open for"


def _accept() -> None:
    """Accept every credential."""


class StreamLife:
    """The limits of one open call. Belongs to the worker of the call, which asks while it waits and at every message.

    Args:
        timeout: How long the client may be silent: how long the worker waits for it between two signs of progress.
        max_age_s: How long the call may be open.
        check_credential: Raises why the credential of the call is no longer valid. No I/O.
        clock: Monotonic seconds.
    """

    __slots__ = ("_check_credential", "_clock", "_ends_at", "_max_age_s", "_silent_s", "_timeout")

    def __init__(
        self,
        timeout: MessageTimeout,
        *,
        max_age_s: float = inf,
        check_credential: Callable[[], None] = _accept,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = timeout
        self._max_age_s = max_age_s
        self._check_credential = check_credential
        self._clock = clock
        self._ends_at = clock() + max_age_s
        self._silent_s = 0.0

    def check(self) -> None:
        """Require that the call may go on.

        Raises:
            Unavailable: It has reached its greatest age. It may be opened again at once.
            Unauthenticated: Its credential has expired or was revoked.
        """
        if self._clock() >= self._ends_at:
            raise too_old(self._max_age_s)
        self._check_credential()

    def check_wait(self, waited_s: float, *, is_saturated: Callable[[], bool]) -> None:
        """Require that the worker may go on waiting, as it has for `waited_s`.

        Raises:
            RequestTimeout: The client has been silent for too long.
            Unavailable: As `check`.
            Unauthenticated: As `check`.
        """
        self.check()
        silent_s = self._silent_s + waited_s
        if silent_s >= self._timeout.limit_s or (silent_s >= self._timeout.limit_when_saturated_s and is_saturated()):
            raise RequestTimeout(f"no request message arrived that the call needs, within {silent_s:.1f} s")

    def pause_s(self) -> float:
        """Return after how long a wait is to be checked again, in seconds."""
        limits = self._timeout.limit_s, self._timeout.limit_when_saturated_s, _CHECK_INTERVAL_S
        return max(0.0, min(*limits, self._ends_at - self._clock()))

    def waited(self, seconds: float) -> None:
        """Count a wait that a message has ended."""
        self._silent_s += seconds

    def progressed(self) -> None:
        """Note that a message had content: the client is not silent."""
        self._silent_s = 0.0


def too_old(max_age_s: float) -> Unavailable:
    """Return the error that ends a stream at its greatest age: without RetryInfo, for it may be opened at once."""
    return Unavailable(f"{_TOO_OLD} {max_age_s:.0f} s, as long as it may be; open another one")


def is_too_old(details: bytes) -> bool:
    """Return whether the details of a status are those of `too_old`."""
    return details.startswith(_TOO_OLD.encode())
