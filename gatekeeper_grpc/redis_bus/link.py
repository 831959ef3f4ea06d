"""The way to Redis: one client for all threads, and a breaker, so that a Redis that is away costs little."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final, TypeVar

import redis
import structlog
from redis.client import PubSub

from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.redis_bus.address import RedisAddress

_log = structlog.get_logger(__name__)

TIMEOUT_S: Final = 0.05
_REST_S = 1.0
_Answer = TypeVar("_Answer")


class RedisLink:
    """Sends commands to Redis, behind a circuit breaker.

    After a failure every command fails at once for one second. Then one is sent; if it succeeds, all are sent again.
    Every failure is an `Unavailable`. One log line says that Redis is away and one that it is back, unless `is_quiet`:
    then the caller logs its own failures.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        timeout_s: float = TIMEOUT_S,
        is_quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s = timeout_s
        self._client = address.connect(timeout_s=timeout_s)  # Which connects later.
        self._is_quiet = is_quiet
        self._clock = clock
        self._lock = threading.Lock()  # guards all below; no command is sent while it is held
        self._is_away = False
        self._ask_again_at = 0.0

    def ask(self, question: Callable[[redis.Redis], _Answer]) -> _Answer:
        """Return what `question` gets from a client.

        Raises:
            Unavailable: Redis failed, or failed within the last second.
        """
        with self._failures():
            return question(self._client)

    @contextmanager
    def pubsub(self) -> Iterator[PubSub]:
        """Open a connection to listen on, for the length of a block.

        Raises:
            Unavailable: Redis failed, here or inside the block.
        """
        with self._failures(), closing(self._client.pubsub()) as pubsub:  # type: ignore[no-untyped-call]
            yield pubsub

    def has_answered(self) -> None:
        """Close the circuit breaker: a subscription works, and its block will not end soon."""
        self._settle(None)

    def use(self, address: RedisAddress) -> None:
        """Send commands to another address from now on, if one is answered there; else nothing changes.

        Raises:
            Unavailable: It is not answered.
        """
        client = address.connect(timeout_s=self._timeout_s)
        try:
            client.ping()
        except (redis.RedisError, OSError) as exc:
            raise Unavailable(f"Redis is away: {exc}", retry_after_s=_REST_S) from exc
        before, self._client = self._client, client
        before.connection_pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close all connections."""
        with suppress(redis.RedisError, OSError):
            self._client.close()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        self._pass_or_refuse()
        try:
            yield
        except redis.ResponseError as exc:
            # Redis is there and refuses the command: it is out of memory, or the user lacks a permission.
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
