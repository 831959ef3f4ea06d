"""Retries inside the store: a read whose connection was lost, a write that conflicted with another.

A write whose connection was lost is never retried here, because it may have been committed. The client sends it again
with the same `request_id`, which is safe.
"""

import random
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from gatekeeper_grpc.store.postgres.errors import ConnectionLost, WriteConflict

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_WRITE_ATTEMPTS = 4
_LONGEST_FIRST_PAUSE_S = 0.02


def retry_lost_read(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Retry a read once if its connection was lost, as in a failover.

    Once, because the next connection is a new one; if that is lost too, the caller decides whether to wait.
    """

    @wraps(method)
    def reading(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(*args, **kwargs)
        except (ConnectionLost, WriteConflict):  # A standby cancels reads that conflict with replay.
            return method(*args, **kwargs)

    return reading


def retry_conflicts(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Retry a transaction that PostgreSQL rolled back because of a deadlock or a serialisation failure.

    At most four attempts, after pauses of random length, so that the two do not conflict again.
    """

    @wraps(method)
    def writing(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for attempt in range(_WRITE_ATTEMPTS - 1):
            try:
                return method(*args, **kwargs)
            except WriteConflict:
                time.sleep(random.uniform(0, _LONGEST_FIRST_PAUSE_S * 2**attempt))  # noqa: S311 - no secret
        return method(*args, **kwargs)

    return writing
