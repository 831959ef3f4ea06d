"""Turns: how many threads may try for a lock of the database at once, first come, first served."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from gatekeeper_grpc.store.postgres.errors import ForeignLock, WriterQueue


class Turns:
    """Gives turns to at most so many threads at once. Thread-safe.

    After a turn that met a foreign lock, one thread at a time tries; the others are refused at once, until a turn has
    not met one. So a lock that lasts costs each caller at most one wait, however many callers there are.

    Args:
        limit: How many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._is_locked = False
        self._taken = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()  # guards the three above

    @contextmanager
    def turn(self, *, within_s: float) -> Iterator[None]:
        """Wait for a turn and take it for the length of the block.

        Raises:
            ForeignLock: The lock is foreign, and another thread is trying.
            WriterQueue: No turn came in time.
        """
        self._enter(deadline=time.monotonic() + within_s)
        is_foreign = False
        try:
            yield
        except ForeignLock:
            is_foreign = True
            raise
        finally:
            self._leave(is_foreign=is_foreign)

    def _enter(self, *, deadline: float) -> None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._taken >= (1 if self._is_locked else self._limit):
                    self._wait(deadline - time.monotonic())
                self._taken += 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _wait(self, left_s: float) -> None:
        if self._is_locked and self._taken:
            raise ForeignLock.held()
        if left_s <= 0:
            raise WriterQueue.too_long()
        self._changed.wait(None if math.isinf(left_s) else left_s)

    def _leave(self, *, is_foreign: bool) -> None:
        with self._changed:
            self._taken -= 1
            self._is_locked = is_foreign
            self._changed.notify_all()
