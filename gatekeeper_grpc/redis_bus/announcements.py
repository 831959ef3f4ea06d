"""Revisions over Redis pub/sub: published after the commit by a thread of its own, received by the other instances."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import SimpleQueue

from redis.client import PubSub

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.domain.revision import announced_revision
from gatekeeper_grpc.redis_bus.link import RedisLink
from gatekeeper_grpc.scheduler import RepeatingThread

# How long Redis may take to confirm a subscription, and to deliver a heartbeat.
_DELIVERED_WITHIN_S = 1.0
_HEARTBEAT_EVERY_S = 5.0
# `wake` cannot end a wait while Redis is unavailable, so no wait is longer.
_WAIT_AT_MOST_S = 1.0
_JOIN_TIMEOUT_S = 2.0
# Stands for a message that is not a number: other applications may use the same Redis.
_NO_REVISION = 0


class RedisAnnouncer:
    """Publishes revisions from `start` to `close`. A failed publication is dropped: other instances poll."""

    def __init__(self, link: RedisLink, channel: str) -> None:
        self._link = link
        self.channel = channel
        # Committed revisions that are not published yet.
        self._waiting: SimpleQueue[int] = SimpleQueue()
        # The task itself waits for a revision.
        self._publishing = RepeatingThread("announce_redis", self._publish, interval_s=0.0)

    def start(self) -> None:
        """Start the thread."""
        self._publishing.start()

    def close(self) -> None:
        """Stop, and wait at most 2 s for the current publication."""
        self._publishing.stop()
        self._waiting.put(_NO_REVISION)
        self._publishing.close(timeout_s=_JOIN_TIMEOUT_S)

    def announce(self, revision: int) -> None:
        """Publish a committed revision soon; does not wait. Of several waiting ones only the newest is published."""
        self._waiting.put(revision)

    def _publish(self) -> None:
        newest = self._waiting.get()
        while not self._waiting.empty():
            newest = max(newest, self._waiting.get())
        if not self._publishing.is_stopping:
            with suppress(Unavailable):  # The link logs it once.
                self._link.ask(lambda client: client.publish(self.channel, str(newest)))


class RedisAnnouncements:
    """Receives the revisions that instances publish.

    A subscription that has stopped delivering looks like one without announcements. So it sends itself a heartbeat
    through Redis, and is given up when that does not come back. A lost connection is never repaired silently, because
    announcements made during the loss are gone.
    """

    name = "redis"

    def __init__(self, link: RedisLink, channels: Sequence[str]) -> None:
        self._link = link
        self.use(channels)

    def use(self, channels: Sequence[str]) -> None:
        """Subscribe to other channels."""
        self._channels = tuple(channels)
        self.renew()

    def renew(self) -> None:
        """Subscribe again."""
        self._heartbeats = f"{self._channels[0]}:beat:{secrets.token_hex(8)}"

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], list[int]]]:
        """Subscribe for the length of a block; its function waits so many seconds, at most 1 s, for revisions.

        Announcements made while nobody listens are lost: read the head once after entering.

        Raises:
            Unavailable: Redis is unavailable, the connection is lost, or no heartbeat is delivered.
        """
        channels, heartbeats = self._channels, self._heartbeats
        with self._link.pubsub() as pubsub:
            subscription = _RedisSubscription(self._link, pubsub, channels, heartbeats)

            def wait(timeout_s: float) -> list[int]:
                if self._heartbeats != heartbeats:
                    raise Unavailable("the subscription is renewed: announcements may be lost")
                return subscription.wait(timeout_s)

            yield wait

    def wake(self) -> None:
        """End the current wait, from any thread: by a heartbeat, or after 1 s while Redis is unavailable."""
        with suppress(Unavailable):
            self._link.ask(lambda client: client.publish(self._heartbeats, ""))


class _RedisSubscription:
    """One subscription, and the heartbeats that test it."""

    def __init__(self, link: RedisLink, pubsub: PubSub, channels: Sequence[str], heartbeats: str) -> None:
        self._link = link
        self._pubsub = pubsub
        self._heartbeats = heartbeats
        self._heartbeat_due_at = time.monotonic() + _HEARTBEAT_EVERY_S
        self._missing_since: float | None = None
        self._subscribe((*channels, heartbeats))

    def wait(self, timeout_s: float) -> list[int]:
        """Wait for a message; return the revision that it announces, if it does.

        Raises:
            Unavailable: Redis does not answer, or announcements may be lost.
        """
        self._check_heartbeat()
        message = self._message(min(timeout_s, _WAIT_AT_MOST_S))
        if message is None:
            return []
        kind, channel, data = message
        if kind != "message":
            raise Unavailable("the subscription was renewed: announcements may be lost")
        if channel == self._heartbeats:
            self._missing_since = None
            return []
        return [_revision(data)]

    def _subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe, and wait until Redis confirms it: from then on every announcement is delivered."""
        self._pubsub.subscribe(*channels)
        until = time.monotonic() + _DELIVERED_WITHIN_S
        unconfirmed = set(channels)
        while unconfirmed and (remaining_s := until - time.monotonic()) > 0:
            message = self._message(remaining_s)
            if message is not None:
                unconfirmed.discard(message[1])
        if unconfirmed:
            raise Unavailable("Redis does not confirm the subscription")
        self._link.has_answered()

    def _check_heartbeat(self) -> None:
        now = time.monotonic()
        if self._missing_since is not None:
            if now - self._missing_since > _DELIVERED_WITHIN_S:
                raise Unavailable("Redis delivers no announcements")
        elif now >= self._heartbeat_due_at:
            self._link.ask(lambda client: client.publish(self._heartbeats, ""))
            self._missing_since, self._heartbeat_due_at = now, now + _HEARTBEAT_EVERY_S

    def _message(self, timeout_s: float) -> tuple[str, str, bytes] | None:
        message = self._pubsub.get_message(timeout=timeout_s)
        if message is None:
            return None
        data = message["data"]
        return message["type"], message["channel"].decode(), data if isinstance(data, bytes) else b""


def _revision(data: bytes) -> int:
    return announced_revision(data.decode("ascii", "replace")) or _NO_REVISION
