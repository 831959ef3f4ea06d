"""The threads that keep the snapshot current: on request, on announcement, by poll, and whole on a timer."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import structlog

from gatekeeper_grpc.cache.snapshot_cache import SnapshotCache
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.domain.snapshot import Snapshot

_log = structlog.get_logger(__name__)

_WRITE_VISIBLE_TIMEOUT_S = 2.0
_JOIN_TIMEOUT_S = 5.0
_RECONNECT_S = 0.5


class SnapshotSource(Protocol):
    """Where snapshots come from."""

    def load(self) -> Snapshot:
        """Load everything."""
        ...

    def load_since(self, base: Snapshot) -> Snapshot:
        """Load what changed since `base`; `base` itself when nothing did."""
        ...


class Announcements(Protocol):
    """Where new revisions are announced."""

    def listening(self) -> AbstractContextManager[Callable[[float], list[int]]]:
        """Listen; inside, the function waits so many seconds for announced revisions."""
        ...


class Refresher:
    """Keeps a `SnapshotCache` current with three threads, from `start` to `close`.

    The refreshing thread loads what changed, whenever it is asked to and at least every `poll_interval_s`. The
    listening thread asks it to when another instance announces a revision. The reloading thread loads everything every
    `reload_interval_s`, in case the change log and the tables ever disagree; it never holds up the first one, and its
    result is brought up to date before it is published.
    """

    def __init__(
        self,
        cache: SnapshotCache,
        source: SnapshotSource,
        announcements: Announcements,
        *,
        poll_interval_s: float,
        reload_interval_s: float,
    ) -> None:
        self._cache = cache
        self._source = source
        self._announcements = announcements
        self._poll_interval_s = poll_interval_s
        self._reload_interval_s = reload_interval_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._refresh_forever, name="gatekeeper-refresh", daemon=True),
            threading.Thread(target=self._listen_forever, name="gatekeeper-listen", daemon=True),
            threading.Thread(target=self._reload_forever, name="gatekeeper-reload", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads; the first snapshot is there soon after, if the database is."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the threads and wait for them, bounded."""
        self._stop.set()
        self._cache.request_refresh()
        for thread in self._threads:
            thread.join(_JOIN_TIMEOUT_S)

    def refresh_after_write(self, revision: int) -> None:
        """Wait until the cache shows a durable write.

        A refresh that fails or takes over 2 s is logged; it never fails the write.
        """
        if not self._cache.wait_for_revision(revision, timeout_s=_WRITE_VISIBLE_TIMEOUT_S):
            _log.warning("write_not_visible_yet", revision=revision)

    def _refresh_forever(self) -> None:
        while not self._stop.is_set():
            self._attempt("refresh", self._refresh)
            self._cache.wait_for_request(self._poll_interval_s)

    def _refresh(self) -> None:
        asked_at = time.monotonic()
        base = self._cache.peek()
        snapshot = self._source.load_since(base) if base else self._source.load()
        if not self._cache.publish(snapshot, confirmed_at=asked_at):
            _log.error("revision_lost", revision=snapshot.revision, serving_revision=self._cache.current().revision)
        elif base is None:
            _log.info(
                "snapshot_loaded", revision=snapshot.revision, flags=len(snapshot.flags), targets=len(snapshot.targets)
            )

    def _listen_forever(self) -> None:
        while not self._stop.is_set():
            self._attempt("listen", self._listen)
            self._stop.wait(_RECONNECT_S)

    def _listen(self) -> None:
        with self._announcements.listening() as wait:
            # What was announced before we listened, we have to look for.
            self._cache.request_refresh()
            while not self._stop.is_set():
                announced = wait(self._poll_interval_s)
                serving = self._cache.peek()
                # Our own writes are announced to us too, when they are served already.
                if announced and (serving is None or max(announced) > serving.revision):
                    self._cache.request_refresh()

    def _reload_forever(self) -> None:
        while not self._stop.wait(self._reload_interval_s):
            self._attempt("reload", self._reload)

    def _reload(self) -> None:
        snapshot = self._source.load()
        published = False
        while not (published or self._stop.is_set()):
            # Writes went on while everything was loaded; an old snapshot is never published.
            asked_at = time.monotonic()
            snapshot = self._source.load_since(snapshot)
            published = self._cache.publish(snapshot, confirmed_at=asked_at)

    def _attempt(self, task: str, act: Callable[[], None]) -> None:
        """Run a task that will be tried again; a failure is logged and survived."""
        try:
            act()
        except GatekeeperError as exc:
            _log.warning("cache_task_failed", task=task, error=str(exc))
        except Exception:  # noqa: BLE001
            # These threads live as long as the process: whatever goes wrong, the next attempt may not.
            _log.exception("cache_task_failed", task=task)
