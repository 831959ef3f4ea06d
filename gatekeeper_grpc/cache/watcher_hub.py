"""Sends changed flag keys to watchers: thousands of them, with one thread, and none waits for another.

A watcher is a position in the change history, and nothing is queued for it. A slow watcher gets everything it missed in
one message when it can take one again, as after a reconnect. One that does not read for 60 s is cancelled.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Protocol

import structlog

from gatekeeper_grpc.cache.change_history import ChangeHistory, Missed, Position
from gatekeeper_grpc.domain.errors import ResourceExhausted, Unavailable
from gatekeeper_grpc.domain.mutation import ChangeType
from gatekeeper_grpc.domain.snapshot import Snapshot
from gatekeeper_grpc.instrumentation.spans import TRACES, Note
from gatekeeper_grpc.scheduler import RepeatingThread

_log = structlog.get_logger(__name__)

# The contract promises 20 s. Due heartbeats are sent once a second, or more often.
_HEARTBEAT_S = 15.0
_GIVE_UP_AFTER_S = 60.0
# At shutdown, a watcher that has not read for longer than this is cancelled: it would delay the shutdown.
_GIVE_UP_AT_CLOSE_S = 1.0
# After messages to so many watchers the thread rests for as long as they took, so that evaluation gets half the time.
_SLICE = 16
_MAX_REST_S = 0.02
# With more changes a watcher had better read all flags again. A message stays below 1 MiB, however long the keys.
_MAX_CHANGES = 5_000
_CACHED_MESSAGES = 16
_RETRY_AFTER_S = 5.0

Encode = Callable[[int, Mapping[str, ChangeType] | None], bytes]


class ResponseStream(Protocol):
    """One watcher's stream of messages. No method waits for the watcher."""

    def send(self, message: bytes, sent: Callable[[], None]) -> bool:
        """Start to send; `sent` is called, from any thread, when there is room for another message.

        Returns False, and sends nothing, if the stream has ended.
        """
        ...

    def end(self, error: Exception) -> None:
        """End the stream with a status."""
        ...

    def cancel(self) -> None:
        """End the stream although the watcher does not read."""
        ...


@dataclass(eq=False, slots=True)
class Watcher:
    """One open stream. Only the hub's thread uses it after it was made."""

    stream: ResponseStream
    position: Position
    flag_keys: frozenset[str]
    last_sent_at: float
    is_busy: bool = False
    must_send: bool = True
    """A message is due, even without changes."""
    is_slow: bool = False
    """Its stream was cancelled because it did not read."""


@dataclass(slots=True, kw_only=True)
class _Delivery:
    """What is sent because of new revisions."""

    after: int
    """The revision before them."""
    note: Note = field(default_factory=partial(Note, name="watch"))
    messages: int = 0


class WatcherHub:
    """Sends the changes that led to the served snapshots to all watchers, from `start` to `close`.

    One thread owns all watchers. Other threads leave it events. It sends to a watcher that has room for a message and
    has missed something, and never waits for a watcher. Without watchers it sleeps.

    Args:
        history: The changes; only `published` extends it.
        encode: Makes a message of a revision and the changes up to it. Changes are None when the history is too short.
        capacity: How many streams may be open at once.
        heartbeat_s: After so long without a message, one without changes is sent.
        give_up_after_s: How long a watcher may leave a message unread before its stream is cancelled.
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
        self._lock = threading.Lock()  # guards _open_streams, _is_started, _is_closed and the order of events
        self._open_streams = 0
        self._is_started = self._is_closed = False
        self._events: deque[Callable[[], None]] = deque()
        self._has_work = threading.Event()
        # All below belongs to the thread. Watchers are ordered by their last message, the oldest first.
        self._watchers: OrderedDict[Watcher, None] = OrderedDict()
        self._due: OrderedDict[Watcher, None] = OrderedDict()
        self._newest = history.position
        self._missed: dict[Position, tuple[Missed, bytes | None]] = {}
        self._delivery: _Delivery | None = None
        self._check_every_s = min(1.0, heartbeat_s / 4)
        self._next_check_at = -math.inf
        self._sending = RepeatingThread("watch", self._run, interval_s=self._check_every_s, wait=self._wait)

    def __len__(self) -> int:
        """Count the open streams."""
        return self._open_streams

    def start(self) -> None:
        """Send from now on. The thread starts with the first stream."""
        with self._lock:
            self._is_started = True
            if self._open_streams:
                self._sending.start()

    def close(self) -> None:
        """End all streams, and refuse further ones, with UNAVAILABLE; cancel those whose watcher does not read."""
        with self._lock:
            self._is_closed = True
        self._sending.stop()
        self._has_work.set()
        self._sending.close()
        self._handle_events()
        # Without RetryInfo: another instance takes the watcher at once.
        shutdown = Unavailable("this instance is shutting down")
        now = time.monotonic()
        for watcher in self._watchers:
            if watcher.is_busy and now - watcher.last_sent_at > _GIVE_UP_AT_CLOSE_S:
                watcher.stream.cancel()
            else:
                watcher.stream.end(shutdown)

    def published(self, snapshot: Snapshot) -> None:
        """Send what led to `snapshot`. The cache calls this for each snapshot, in order, after it began to serve it."""
        self._history.extend(snapshot)
        self._has_work.set()

    def open(self, stream: ResponseStream, *, from_revision: int, flag_keys: frozenset[str]) -> Watcher:
        """Send changes after `from_revision` to `stream`, beginning at once.

        Args:
            stream: The stream.
            from_revision: The revision that the watcher knows; 0: the newest.
            flag_keys: The flags to report; empty: all.

        Raises:
            ResourceExhausted: `capacity` streams are open.
            Unavailable: this instance is shutting down.
        """
        position = self._history.at(from_revision) if from_revision else self._history.position
        watcher = Watcher(stream, position, flag_keys, time.monotonic())
        with self._lock:
            if self._is_closed:
                raise Unavailable("this instance is shutting down")
            if self._open_streams >= self._capacity:
                raise ResourceExhausted(
                    f"this instance has {self._capacity} watchers, as many as it may; try another",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._open_streams += 1
            if self._is_started:
                self._sending.start()
            self._events.append(partial(self._add, watcher))
        self._has_work.set()
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Remove a watcher whose stream has ended. Call it once for each opened stream."""
        with self._lock:
            self._open_streams -= 1
            self._events.append(partial(self._remove, watcher))
        self._has_work.set()

    # --- On the thread ------------------------------------------------------------------------------------------------

    def _wait(self, _interval_s: float) -> None:
        """Sleep until there is an event or a heartbeat is due."""
        self._has_work.wait(self._pause_s())
        self._has_work.clear()

    def _pause_s(self) -> float | None:
        """Return for how long no heartbeat can become due; None without watchers."""
        oldest = next(iter(self._watchers), None)
        if oldest is None:
            return None
        return max(oldest.last_sent_at + self._heartbeat_s - time.monotonic(), self._check_every_s)

    def _run(self) -> None:
        self._update()
        while self._due and not self._sending.is_stopping:
            began = time.monotonic()
            for watcher in [*islice(self._due, _SLICE)]:
                del self._due[watcher]
                self._send_missed(watcher)
            time.sleep(min(time.monotonic() - began, _MAX_REST_S))
            self._update()
        self._end_delivery()

    def _update(self) -> None:
        """Handle what happened since the last call."""
        self._handle_events()
        if self._newest != self._history.position:
            if TRACES.sink is not None:
                self._delivery = self._delivery or _Delivery(after=self._newest.revision)
            self._newest = self._history.position
            self._missed.clear()
            self._due.update(self._watchers)
        # Here, and not after a round: while flags keep changing, a round need not end.
        if time.monotonic() >= self._next_check_at:
            self._next_check_at = time.monotonic() + self._check_every_s
            self._check_heartbeats()

    def _end_delivery(self) -> None:
        """Trace what was sent of new revisions, once it is."""
        delivery, self._delivery = self._delivery, None
        if delivery is not None and delivery.messages:
            delivery.note.attributes["gatekeeper.messages"] = delivery.messages
            delivery.note.ended_at = time.monotonic()
            TRACES.add_effect(delivery.note, after=delivery.after, upto=self._newest.revision)

    def _handle_events(self) -> None:
        while self._events:
            self._events.popleft()()

    def _add(self, watcher: Watcher) -> None:
        self._watchers[watcher] = self._due[watcher] = None
        # A new watcher is served before those that wait for a change.
        self._due.move_to_end(watcher, last=False)

    def _remove(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)
        self._due.pop(watcher, None)

    def _sent(self, watcher: Watcher) -> None:
        """Leave the event that a watcher has room again. grpcio calls this on its own thread, so it must be quick."""
        self._events.append(partial(self._set_free, watcher))
        self._has_work.set()

    def _set_free(self, watcher: Watcher) -> None:
        watcher.is_busy = False
        if watcher in self._watchers and watcher.position != self._history.position:
            self._due[watcher] = None

    def _check_heartbeats(self) -> None:
        """Make heartbeats due for silent watchers; cancel those that do not read."""
        now = time.monotonic()
        slow = []
        for watcher in self._watchers:
            silent_s = now - watcher.last_sent_at
            if silent_s < self._heartbeat_s:
                break
            if not watcher.is_busy:
                watcher.must_send = True
                self._due[watcher] = None
            elif silent_s >= self._give_up_after_s:
                slow.append(watcher)
        self._cancel(slow)

    def _cancel(self, slow: list[Watcher]) -> None:
        for watcher in slow:
            self._remove(watcher)
            watcher.is_slow = True
            watcher.stream.cancel()
        if slow:
            _log.info("watchers_too_slow", count=len(slow))

    def _send_missed(self, watcher: Watcher) -> None:
        """Send what a watcher has missed, or a heartbeat that is due, if it has room for a message."""
        if watcher.is_busy:
            return
        missed, message = self._missed_since(watcher.position)
        watcher.position = missed.position
        if watcher.flag_keys and missed.changes is not None:
            changes = {key: missed.changes[key] for key in watcher.flag_keys & missed.changes.keys()}
            message = self._encoded(missed, changes) if changes else None
        if message is None:
            if not watcher.must_send:
                return
            message = self._encode(missed.position.revision, {})
        self._send(watcher, message)

    def _send(self, watcher: Watcher, message: bytes) -> None:
        watcher.must_send = False
        watcher.is_busy = True
        watcher.last_sent_at = time.monotonic()
        self._watchers.move_to_end(watcher)
        if not watcher.stream.send(message, partial(self._sent, watcher)):
            self._remove(watcher)
        elif self._delivery is not None:
            self._delivery.messages += 1

    def _missed_since(self, position: Position) -> tuple[Missed, bytes | None]:
        """Return the changes since a position, and their message. Cached, because most watchers share one position."""
        if (known := self._missed.get(position)) is not None:
            return known
        missed = self._history.since(position)
        message = self._encoded(missed, missed.changes) if missed.changes != {} else None
        if len(self._missed) >= _CACHED_MESSAGES:
            self._missed.clear()
        self._missed[position] = (missed, message)
        return missed, message

    def _encoded(self, missed: Missed, changes: Mapping[str, ChangeType] | None) -> bytes:
        fits = changes is not None and len(changes) <= _MAX_CHANGES
        return self._encode(missed.position.revision, changes if fits else None)
