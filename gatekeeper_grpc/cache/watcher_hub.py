"""Tells watchers which flags changed: thousands of them, with one thread, none of them waiting for another.

A watcher is a position in the change history, and nothing else is kept for it: whoever is slow is told all that it has
missed when it can take a message again, as if it had been away and come back.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Protocol

import structlog

from gatekeeper_grpc.cache.change_history import ChangeHistory, Missed, Position
from gatekeeper_grpc.domain.errors import ResourceExhausted, Unavailable
from gatekeeper_grpc.domain.mutation import ChangeType
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.scheduler import RepeatingThread

_log = structlog.get_logger(__name__)

# Promised: 20 s. What is due is looked for once a second, or more often.
_HEARTBEAT_S = 15.0
_GIVE_UP_AFTER_S = 60.0
# At shutdown, whoever is behind for longer than this would hold it up.
_GIVE_UP_AT_CLOSE_S = 1.0
# As many watchers are sent to in one go; then the thread rests for as long as that took, for evaluation's sake.
_SLICE = 16
_MAX_REST_S = 0.02
# With more, it is cheaper for everybody to begin anew; and a message stays below 1 MiB, however long the keys.
_MAX_CHANGES = 5_000
_KEPT_MESSAGES = 16
_RETRY_AFTER_S = 5.0

Encode = Callable[[int, Mapping[str, ChangeType] | None], bytes]


class ResponseStream(Protocol):
    """Where one watcher's messages go. Nothing here waits for the watcher."""

    def send(self, message: bytes, sent: Callable[[], None]) -> bool:
        """Start to send, and call `sent`, from any thread, when there is room for another message.

        False: the stream is over, and nothing is sent.
        """
        ...

    def end(self, error: Exception) -> None:
        """End the stream with a status."""
        ...

    def cancel(self) -> None:
        """End the stream although the watcher does not read."""
        ...


class Watcher:
    """One open stream. After it was made, only the hub's thread looks at it."""

    __slots__ = ("flag_keys", "is_busy", "is_owed", "outlet", "position", "told_at")

    def __init__(self, outlet: ResponseStream, position: Position, flag_keys: frozenset[str], *, now: float) -> None:
        self.outlet = outlet
        self.flag_keys = flag_keys
        self.position = position
        self.told_at = now
        self.is_busy = False
        # A message is due, even if it has no changes to tell.
        self.is_owed = True


class WatcherHub:
    """Keeps watchers told of what leads to the snapshots that are served, from `start` to `close`.

    One thread owns all watchers; whatever happens elsewhere leaves it a note. It sends to a watcher when that is free
    and has something coming, and waits for nobody.

    Args:
        history: What happened; extended by `published` alone.
        encode: Makes the message from a revision and the changes up to it; None: that the history is gone.
        capacity: How many streams may be open at once.
        heartbeat_s: After how long without a message one is sent that says nothing new.
        give_up_after_s: How long a watcher may leave a message unread.
    """

    def __init__(
        self,
        history: ChangeHistory,
        encode: Encode,
        *,
        capacity: int,
        heartbeat_s: float = _HEARTBEAT_S,
        give_up_after_s: float = _GIVE_UP_AFTER_S,
    ) -> None:
        self._history = history
        self._encode = encode
        self._capacity = capacity
        self._heartbeat_s = heartbeat_s
        self._give_up_after_s = give_up_after_s
        self._lock = threading.Lock()  # guards _open_streams, _is_started, _is_closed and the order of notes with them
        self._open_streams = 0
        self._is_started = self._is_closed = False
        self._notes: deque[Callable[[], None]] = deque()
        self._wanted = threading.Event()
        # All below belongs to the thread. Watchers stand in the order in which they were last told something.
        self._watchers: OrderedDict[Watcher, None] = OrderedDict()
        self._due: OrderedDict[Watcher, None] = OrderedDict()
        self._announced = history.position
        self._missed: dict[Position, tuple[Missed, bytes | None]] = {}
        self._remind_every_s = min(1.0, heartbeat_s / 4)
        self._next_reminder = -math.inf
        self._sending = RepeatingThread("watch", self._run, interval_s=self._remind_every_s, wait=self._wait)

    def __len__(self) -> int:
        """Count the streams that are open."""
        return self._open_streams

    def start(self) -> None:
        """Send from now on. The thread starts with the first stream."""
        with self._lock:
            self._is_started = True
            if self._open_streams:
                self._sending.start()

    def close(self) -> None:
        """End all streams, and refuse further ones, with UNAVAILABLE; cancel those whose watcher is behind."""
        with self._lock:
            self._is_closed = True
        self._sending.stop()
        self._wanted.set()
        self._sending.close()
        self._take_notes()
        shutdown = Unavailable("this instance is shutting down", retry_after_s=_RETRY_AFTER_S)
        now = time.monotonic()
        for watcher in self._watchers:
            if watcher.is_busy and now - watcher.told_at > _GIVE_UP_AT_CLOSE_S:
                watcher.outlet.cancel()
            else:
                watcher.outlet.end(shutdown)

    def published(self, snapshot: Snapshot) -> None:
        """Note that `snapshot` is served from now on. For the cache: after it has been swapped in, in that order."""
        self._history.extend(snapshot)
        self._wanted.set()

    def open(self, outlet: ResponseStream, *, from_revision: int, flag_keys: frozenset[str]) -> Watcher:
        """Tell whoever reads from `outlet` what happens after `from_revision`, beginning at once.

        Args:
            outlet: The stream.
            from_revision: Up to where the watcher knows everything; 0: up to now.
            flag_keys: The flags of interest; empty: all.

        Errors: `ResourceExhausted` when too many streams are open, `Unavailable` at shutdown.
        """
        position = self._history.at(from_revision) if from_revision else self._history.position
        watcher = Watcher(outlet, position, flag_keys, now=time.monotonic())
        with self._lock:
            if self._is_closed:
                raise Unavailable("this instance is shutting down", retry_after_s=_RETRY_AFTER_S)
            if self._open_streams >= self._capacity:
                raise ResourceExhausted(
                    f"this instance has {self._capacity} watchers, as many as it may; try another",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._open_streams += 1
            if self._is_started:
                self._sending.start()
            self._notes.append(partial(self._welcome, watcher))
        self._wanted.set()
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Forget a watcher whose stream is over. Call it once for each that was opened."""
        with self._lock:
            self._open_streams -= 1
            self._notes.append(partial(self._forget, watcher))
        self._wanted.set()

    # --- On the thread ------------------------------------------------------------------------------------------------

    def _wait(self, timeout_s: float) -> None:
        self._wanted.wait(timeout_s)
        self._wanted.clear()

    def _run(self) -> None:
        self._look()
        while self._due and not self._sending.is_stopping:
            began = time.monotonic()
            for watcher in [*islice(self._due, _SLICE)]:
                del self._due[watcher]
                self._tell(watcher)
            time.sleep(min(time.monotonic() - began, _MAX_REST_S))
            self._look()

    def _look(self) -> None:
        """Take what happened meanwhile into account."""
        self._take_notes()
        if self._announced != self._history.position:
            self._announced = self._history.position
            self._missed.clear()
            self._due.update(self._watchers)
        # Here, and not after a round: while flags change all the time, a round need not end.
        if time.monotonic() >= self._next_reminder:
            self._next_reminder = time.monotonic() + self._remind_every_s
            self._remind()

    def _take_notes(self) -> None:
        while self._notes:
            self._notes.popleft()()

    def _welcome(self, watcher: Watcher) -> None:
        self._watchers[watcher] = self._due[watcher] = None
        # It has just asked: those who are told the news can wait a little longer.
        self._due.move_to_end(watcher, last=False)

    def _forget(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)
        self._due.pop(watcher, None)

    def _sent(self, watcher: Watcher) -> None:
        """Note that a watcher can take another message. Called by grpcio, for which this must be quick."""
        self._notes.append(partial(self._free, watcher))
        self._wanted.set()

    def _free(self, watcher: Watcher) -> None:
        watcher.is_busy = False
        if watcher in self._watchers and watcher.position != self._history.position:
            self._due[watcher] = None

    def _remind(self) -> None:
        """Have those told something who have heard nothing for long; give up on those who do not read."""
        now = time.monotonic()
        lost = []
        for watcher in self._watchers:
            silent_s = now - watcher.told_at
            if silent_s < self._heartbeat_s:
                break
            if not watcher.is_busy:
                watcher.is_owed = True
                self._due[watcher] = None
            elif silent_s >= self._give_up_after_s:
                lost.append(watcher)
        self._give_up(lost)

    def _give_up(self, lost: list[Watcher]) -> None:
        for watcher in lost:
            self._forget(watcher)
            watcher.outlet.cancel()
        if lost:
            _log.info("watchers_too_slow", count=len(lost))

    def _tell(self, watcher: Watcher) -> None:
        """Send what a watcher has coming, if it has something coming and is free."""
        if watcher.is_busy:
            return
        missed, message = self._missed_since(watcher.position)
        watcher.position = missed.position
        if watcher.flag_keys and missed.changes is not None:
            changes = {key: missed.changes[key] for key in watcher.flag_keys & missed.changes.keys()}
            message = self._encoded(missed, changes) if changes else None
        if message is None:
            if not watcher.is_owed:
                return
            message = self._encode(missed.position.revision, {})
        self._send(watcher, message)

    def _send(self, watcher: Watcher, message: bytes) -> None:
        watcher.is_owed = False
        watcher.is_busy = True
        watcher.told_at = time.monotonic()
        self._watchers.move_to_end(watcher)
        if not watcher.outlet.send(message, partial(self._sent, watcher)):
            self._forget(watcher)

    def _missed_since(self, position: Position) -> tuple[Missed, bytes | None]:
        """Return what happened since, and the message that tells all of it; most watchers share one position."""
        if (known := self._missed.get(position)) is not None:
            return known
        missed = self._history.since(position)
        message = self._encoded(missed, missed.changes) if missed.changes != {} else None
        if len(self._missed) >= _KEPT_MESSAGES:
            self._missed.clear()
        self._missed[position] = (missed, message)
        return missed, message

    def _encoded(self, missed: Missed, changes: Mapping[str, ChangeType] | None) -> bytes:
        is_told = changes is not None and len(changes) <= _MAX_CHANGES
        return self._encode(missed.position.revision, changes if is_told else None)
