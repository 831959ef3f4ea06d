"""When credentials were last used: noted in memory, and stored now and then."""

import threading
from collections.abc import Callable, Mapping
from datetime import datetime

from gatekeeper_grpc.auth.tokens import Clock, utc_now


class LastUses:
    """Collects when each credential was last used. Thread-safe.

    Args:
        record: Stores the times by the id of the credential.
        clock: Returns the current aware time.
    """

    def __init__(self, record: Callable[[Mapping[str, datetime]], None], *, clock: Clock = utc_now) -> None:
        self._record = record
        self._clock = clock
        self._lock = threading.Lock()  # guards _used
        self._used: dict[str, datetime] = {}

    def note(self, credential_id: str) -> None:
        """Note that a credential was used now. Takes a microsecond."""
        with self._lock:
            self._used[credential_id] = self._clock()

    def flush(self) -> None:
        """Store what `note` collected; call it once a minute. A crash loses at most that."""
        with self._lock:
            used, self._used = self._used, {}
        if used:
            self._record(used)
