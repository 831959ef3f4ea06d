"""Revisions over Redis pub/sub: published after the commit by a thread of its own, and heard by the other instances."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import structlog
from redis.client import PubSub

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.redis_bus.link import RedisLink

_log = structlog.get_logger(__name__)

# How long a subscription may take to be confirmed, and a beat to come back.
_HEARD_WITHIN_S = 1.0
_BEAT_EVERY_S = 5.0
_JOIN_TIMEOUT_S = 2.0
# Of a message that is not a number: others may use the same Redis.
_NO_REVISION = 0


class RedisAnnouncer:
    """Publishes revisions from `start` to `close`. What cannot be published is left out: others find it by poll."""

    def __init__(self, link: RedisLink, channel: str) -> None:
        self._link = link
        self._channel = channel
        # What was committed and is not published yet; None: nothing more will be.
        self._waiting: SimpleQueue[int | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gatekeeper-announce_redis", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait shortly for what is being published."""
        self._waiting.put(None)
        if self._thread.ident is not None:
            self._thread.join(_JOIN_TIMEOUT_S)

    def announce(self, revision: int) -> None:
        """Have a committed revision published soon; waits for nothing. Of several at once the newest is enough."""
        self._waiting.put(revision)

    def _run(self) -> None:
        while (revision := self._waiting.get()) is not None:
            while not self._waiting.empty():
                if (another := self._waiting.get()) is None:
                    return
                revision = max(revision, another)
            self._publish(revision)

    def _publish(self, revision: int) -> None:
        try:
            self._link.ask(lambda client: client.publish(self._channel, str(revision)))
        except Unavailable:
            return  # Told by the link, once.
        except Exception:  # noqa: BLE001 - the next one may be published; a dead thread would be silent
            _log.exception("announcing_failed", revision=revision)


class RedisAnnouncements:
    """Hears the revisions that instances publish.

    A subscription that hears nothing looks like one to which nothing is said: so it sends itself a beat through Redis,
    and is given up when that does not come back. A connection that was lost is never mended in silence, for what was
    published meanwhile is lost.
    """

    name = "redis"

    def __init__(self, link: RedisLink, channels: Sequence[str]) -> None:
        self._link = link
        self._channels = tuple(channels)

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], list[int]]]:
        """Subscribe for the length of a block; the function yielded waits that many seconds for revisions.

        What is published while nobody listens is lost: whoever enters must look at the head once. `Unavailable` when
        Redis is away, the connection is lost, or nothing is heard on it.
        """
        with self._link.pubsub() as pubsub:
            yield _Ear(self._link, pubsub, self._channels).wait


class _Ear:
    def __init__(self, link: RedisLink, pubsub: PubSub, channels: Sequence[str]) -> None:
        self._link = link
        self._pubsub = pubsub
        self._beats = f"{channels[0]}:beat:{secrets.token_hex(8)}"
        self._beat_due_at = time.monotonic() + _BEAT_EVERY_S
        self._unheard_since: float | None = None
        self._subscribe((*channels, self._beats))

    def wait(self, timeout_s: float) -> list[int]:
        """Wait for a message; return the revision it tells, if it tells one."""
        self._beat()
        message = self._message(timeout_s)
        if message is None:
            return []
        kind, channel, data = message
        if kind != "message":
            raise Unavailable("the subscription was renewed: something may have been missed")
        if channel == self._beats:
            self._unheard_since = None
            return []
        return [_revision(data)]

    def _subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe, and wait until Redis says so: only then is nothing missed any more."""
        self._pubsub.subscribe(*channels)
        until = time.monotonic() + _HEARD_WITHIN_S
        unconfirmed = set(channels)
        while unconfirmed and (remaining_s := until - time.monotonic()) > 0:
            message = self._message(remaining_s)
            if message is not None:
                unconfirmed.discard(message[1])
        if unconfirmed:
            raise Unavailable("Redis does not confirm the subscription")
        self._link.has_answered()

    def _beat(self) -> None:
        now = time.monotonic()
        if self._unheard_since is not None:
            if now - self._unheard_since > _HEARD_WITHIN_S:
                raise Unavailable("nothing is heard from Redis")
        elif now >= self._beat_due_at:
            self._link.ask(lambda client: client.publish(self._beats, ""))
            self._unheard_since, self._beat_due_at = now, now + _BEAT_EVERY_S

    def _message(self, timeout_s: float) -> tuple[str, str, bytes] | None:
        message = self._pubsub.get_message(timeout=timeout_s)
        if message is None:
            return None
        data = message["data"]
        return message["type"], message["channel"].decode(), data if isinstance(data, bytes) else b""


def _revision(data: bytes) -> int:
    return int(data) if data.isdigit() else _NO_REVISION
