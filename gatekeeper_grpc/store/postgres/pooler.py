"""Finds out whether a pooler in between gives each transaction another session, which Gatekeeper cannot work with.

LISTEN, session settings, prepared statements and the advisory lock of a migration belong to a session. A pooler in
session mode keeps it for the length of a connection.
"""

import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psycopg

from gatekeeper_grpc.domain.errors import FailedPrecondition

Session = psycopg.Connection[Any]

_SET = "SELECT set_config('gatekeeper.session', %s, false)"
_GET = "SELECT current_setting('gatekeeper.session', true)"
_REMEDY = (
    "DATABASE_URL leads to a pooler that gives each transaction another session, as PgBouncer does with"
    " pool_mode=transaction or statement: let it lead to PostgreSQL itself, or to a pooler with pool_mode=session"
)


def require_session(conn: Session, another: Callable[[], AbstractContextManager[Session]]) -> None:
    """Refuse a connection that does not keep its session.

    A pooler tells clients a process id of its own. Only behind one, which costs nobody else a round trip more than
    that, `another` connection opens a transaction, which takes the session of this one unless it is kept.

    Raises:
        FailedPrecondition: It does not.
    """
    ((pid,),) = conn.execute("SELECT pg_backend_pid()").fetchall()
    if pid == conn.pgconn.backend_pid:
        return
    mark = secrets.token_hex(8)
    conn.execute(_SET, [mark])
    try:
        with another() as other, other.transaction():
            other.execute(_GET)
            is_kept = conn.execute(_GET).fetchall() == [(mark,)]
    except psycopg.errors.ProtocolViolation:  # pool_mode=statement has no transactions.
        is_kept = False
    if not is_kept:
        raise FailedPrecondition(_REMEDY)
