"""What the store does a second time by itself: a read whose connection was lost, a write that met another's.

A write whose connection was lost is never among them: it may have been committed. Its caller sends it again with the
same `request_id`, which makes that safe.
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
    """Do what only reads once more when its connection was lost in the middle, as all are in a failover.

    Once: the next connection is a new one, and if that is lost too, waiting is for the caller to decide.
    """

    @wraps(method)
    def reading(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(*args, **kwargs)
        except (ConnectionLost, WriteConflict):  # A standby ends reads that are in the way of what it replays.
            return method(*args, **kwargs)

    return reading


def retry_conflicts(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Do one transaction again when PostgreSQL undid it for another's sake: a deadlock, a serialisation failure.

    At most four times in all, after pauses of random length, lest the two meet again.
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
