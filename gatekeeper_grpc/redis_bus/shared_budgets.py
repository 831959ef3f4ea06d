"""Rate limits over all instances: budgets in Redis, and the numbers of calls that instances tell each other."""

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, Final

import redis

from gatekeeper_grpc.domain.rate import Rate
from gatekeeper_grpc.domain.rate_exchange import Taken
from gatekeeper_grpc.redis_bus.link import RedisLink

# The same rule as in domain/rate_limiter.py, in microseconds of Redis's own clock: those of instances differ.
# Redis before 5 writes after TIME only with `replicate_commands`.
_TAKE: Final = """
redis.replicate_commands()
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local wait = full_at + interval - now - window
if wait > 0 then
  return {wait, full_at - now}
end
full_at = full_at + interval
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
return {0, full_at - now}
"""
_MICROSECONDS: Final = 1_000_000
# A number is of use for as long as the instances exchange it, twice a second.
_KEPT_S: Final = 60


class RedisSharedBudgets:
    """Implements `domain.rate_exchange.SharedBudgets`. Every command has the time limit and the breaker of its link.

    Args:
        link: The way to Redis.
        prefix: What the names of its keys begin with.
    """

    def __init__(self, link: RedisLink, prefix: str) -> None:
        self._link = link
        self.use(prefix)

    def use(self, prefix: str) -> None:
        """Count under other names from now on, where nothing is counted yet or what other instances count."""
        self._prefix = f"{prefix}:rate"

    def take(self, limit: str, caller: str, rate: Rate) -> Taken:
        """Count a call of a caller, unless its budget does not suffice.

        Raises:
            Unavailable: Redis is away.
        """
        interval = ceil(rate.interval_s * _MICROSECONDS)
        key, arguments = f"{self._prefix}:{limit}:{caller}", (interval, interval * rate.burst)
        # Any: redis-py's published types do not say what a script returns.
        answer: Any = self._link.ask(lambda client: client.eval(_TAKE, 1, key, *arguments))
        wait, full_in = answer
        return Taken(wait / _MICROSECONDS, full_in / _MICROSECONDS)

    def add(self, limit: str, counts: Mapping[str, int]) -> Mapping[str, int]:
        """Add to the number of calls of each caller; return the numbers, which are forgotten after a minute of rest.

        Raises:
            Unavailable: Redis is away.
        """
        numbers = self._link.ask(self._adding(f"{self._prefix}:{limit}:calls", counts)) if counts else []
        return dict(zip(counts, numbers, strict=True))

    def _adding(self, prefix: str, counts: Mapping[str, int]) -> Callable[[redis.Redis], list[int]]:
        def add(client: redis.Redis) -> list[int]:
            with client.pipeline(transaction=False) as pipeline:
                for caller, count in counts.items():
                    pipeline.incrby(f"{prefix}:{caller}", count)
                    pipeline.expire(f"{prefix}:{caller}", _KEPT_S)
                answers: list[Any] = pipeline.execute()
                return [int(answer) for answer in answers[::2]]

        return add
