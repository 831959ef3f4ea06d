"""Listens for the revisions that commits announce."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from gatekeeper_grpc.store.errors import translated_errors
from gatekeeper_grpc.store.ledger import CHANNEL


class RevisionListener:
    """A LISTEN on a connection of its own, outside the pool.

    Needs a direct connection: PgBouncer in transaction mode drops LISTEN.
    """

    name = "postgresql"

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], list[int]]]:
        """LISTEN for the length of a block; the function yielded waits that many seconds for announced revisions.

        What is announced while nobody listens is lost: whoever enters must look at the head once. `Unavailable` when
        the connection cannot be made or is lost; each wait begins by proving that it is alive.
        """
        with translated_errors(), psycopg.connect(self._dsn, autocommit=True, connect_timeout=2) as conn:
            conn.execute(f"LISTEN {CHANNEL}")

            def wait(timeout_s: float) -> list[int]:
                with translated_errors():
                    conn.execute("SELECT 1")
                    return [int(notify.payload) for notify in conn.notifies(timeout=timeout_s, stop_after=1)]

            yield wait
