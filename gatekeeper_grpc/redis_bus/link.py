"""The way to Redis: one client for all threads, and a breaker, so that a Redis that is away costs little."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import redis
import structlog
from redis.client import PubSub

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.redis_bus.address import Client, RedisAddress

_log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 0.05
_REST_S = 1.0
_Answer = TypeVar("_Answer")


class RedisLink:
    """Asks Redis. After a failure nobody asks for a second; then one does, and when that works, everybody does again.

    `Unavailable` is all that goes wrong. One line in the log says when Redis is away and one when it is back, unless
    whoever asks tells that themselves (`is_quiet`).
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        timeout_s: float = TIMEOUT_S,
        is_quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._is_quiet = is_quiet
        self._clock = clock
        self._lock = threading.Lock()  # Guards what follows; nothing is asked while it is held.
        self._client: Client | None = None
        self._is_away = False
        self._ask_again_at = 0.0

    def ask(self, question: Callable[[Client], _Answer]) -> _Answer:
        """Return what `question` gets from a client; `Unavailable` at once while Redis is taken for away."""
        with self._failures():
            return question(self._connected())

    @contextmanager
    def pubsub(self) -> Iterator[PubSub]:
        """Open a connection to listen on, for the length of a block, whose failures are those of Redis."""
        with self._failures():
            # Any: the method is published without types.
            pubsub: PubSub = self._untyped_client().pubsub()
            try:
                yield pubsub
            finally:
                with suppress(redis.RedisError, OSError):
                    pubsub.close()

    def has_answered(self) -> None:
        """Take note that Redis is there: for who listens, and will not end for long."""
        self._settle(None)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            with suppress(redis.RedisError, OSError):
                client.close()

    def _untyped_client(self) -> Any:
        return self._connected()

    def _connected(self) -> Client:
        """Return the client; a cluster's needs to be asked where everything is, which can fail."""
        client = self._client
        if client is not None:
            return client
        made = self._address.connect(timeout_s=self._timeout_s)
        with self._lock:
            client = self._client = made if self._client is None else self._client
        if client is not made:
            made.close()
        return client

    @contextmanager
    def _failures(self) -> Iterator[None]:
        self._pass_or_refuse()
        try:
            yield
        except redis.ResponseError as exc:
            # It is there, and does not do what it was asked to: out of memory, say, or not allowed.
            self._settle(None)
            raise Unavailable(f"Redis refuses: {exc}", retry_after_s=_REST_S) from exc
        except (redis.RedisError, OSError) as exc:
            self._settle(exc)
            raise Unavailable(f"Redis is away: {exc}", retry_after_s=_REST_S) from exc
        self._settle(None)

    def _pass_or_refuse(self) -> None:
        with self._lock:
            if not self._is_away:
                return
            now = self._clock()
            if now < self._ask_again_at:
                raise Unavailable("Redis is away", retry_after_s=_REST_S)
            self._ask_again_at = now + _REST_S

    def _settle(self, error: Exception | None) -> None:
        with self._lock:
            was_away, self._is_away = self._is_away, error is not None
            if error is not None:
                self._ask_again_at = self._clock() + _REST_S
        if self._is_quiet:
            return
        if error is not None and not was_away:
            _log.warning("redis_away", error=str(error))
        elif error is None and was_away:
            _log.info("redis_back")
