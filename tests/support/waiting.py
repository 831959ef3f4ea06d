"""Waiting for what nothing signals to a test."""

import time
from collections.abc import Callable

TIMEOUT_S = 60.0
_POLL_S = 0.01


def eventually(condition: Callable[[], object], *, timeout_s: float = TIMEOUT_S) -> bool:
    """Wait until a condition holds; False if it does not in time.

    The default is for a busy machine: a test that passes does not wait for it.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
