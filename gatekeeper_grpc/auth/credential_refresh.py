"""Keeps credentials in memory current: a revocation acts on every instance within a second."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.scheduler import RepeatingThread

# Announcements may be lost, and a revocation has to act within a second: half of that to notice it, half to load.
POLL_INTERVAL_S: Final = 0.5
# In case somebody has changed rows without a revision.
_RELOAD_AFTER_S: Final = 30.0


class CredentialRefresh:
    """Loads credentials when one has changed, from `start` to `close`.

    Every change of a credential, and of the admin user who made it, is a mutation, so a new revision. The thread asks
    the database when it is requested to, and every `interval_s`.

    Args:
        changed_since: Asks the database for its revision, and whether a credential may have changed since an earlier
            one. The first time, they are loaded whatever it says.
        load: Loads all credentials.
        checked: Called after every poll, also after one that failed: credentials expire without the database.
        interval_s: How often to ask.
    """

    def __init__(
        self,
        changed_since: Callable[[int], tuple[int, bool]],
        load: Callable[[], object],
        *,
        checked: Callable[[], object] = lambda: None,
        interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        self._changed_since = changed_since
        self._load = load
        self._checked = checked
        self._loaded_revision = 0
        self._reload_due_at = 0.0
        self._is_requested = threading.Event()
        # A thread that is always there: a revocation must act here in time, even if the scheduler is held.
        self._thread = RepeatingThread("credentials", self._run, interval_s=interval_s, wait=self._is_requested.wait)

    def start(self) -> None:
        """Load once, so that no caller is refused who only comes early, and start the thread.

        If the database does not answer, the thread goes on to try. Until it has succeeded, callers with a credential
        are asked to try again.
        """
        with suppress(GatekeeperError):
            self._refresh()
        self._thread.start()

    def request(self) -> None:
        """Ask the database soon; does not wait."""
        self._is_requested.set()

    def close(self) -> None:
        """Stop the thread, and wait for it, bounded."""
        self._thread.stop()
        self.request()
        self._thread.close()

    def _run(self) -> None:
        self._is_requested.clear()
        try:
            self._refresh()
        finally:
            self._checked()

    def _refresh(self) -> None:
        # Before the load: what changes in between is loaded once more.
        (revision, has_changed), now = self._changed_since(self._loaded_revision), time.monotonic()
        if has_changed or now >= self._reload_due_at:
            self._load()
            self._reload_due_at = now + _RELOAD_AFTER_S
        self._loaded_revision = revision
