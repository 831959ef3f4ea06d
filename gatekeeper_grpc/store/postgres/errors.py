"""Translation of psycopg's errors into domain errors; nothing else translates them."""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
import psycopg_pool
import structlog
from psycopg import errors as pg

from gatekeeper_grpc.domain.errors import Busy, GatekeeperError, InvalidArgument, OutcomeUnknown, Unavailable
from gatekeeper_grpc.store.postgres.sqlstates import BUG, BUSY, LOCKED, UNREACHABLE, Cause, cause_of, label_of

_log = structlog.get_logger(__name__)

_RETRY_AFTER_S = 1.0
# The log has the first error of each kind, and then one line in so many seconds.
_REPORT_EVERY_S = 10.0
# PostgreSQL ends the connection together with these; those without a SQLSTATE are libpq's, about a lost one.
_ENDS_CONNECTION = frozenset({"57P01", "57P02", "57P05", "25P03", "25P04"})

# PostgreSQL names no constraint for a missing partition. Maintenance creates partitions far ahead.
_NO_PARTITION = "the audit log has no partition for the next entry; nothing was changed"


class ConnectFailed(psycopg.OperationalError):
    """A server refused a connection. Instances have the `sqlstate` that it gave, if it answered at all."""

    def __init__(self, message: str, sqlstate: str | None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class ConnectionLost(Unavailable):
    """The connection was lost during a transaction that was not being committed: nothing was changed."""


class WriteConflict(Unavailable):
    """PostgreSQL rolled the transaction back because of a concurrent one; a retry will probably succeed."""


class WriterQueue(WriteConflict, Busy):
    """The transaction waited too long for others of Gatekeeper's own, which do get on."""

    reason = "DATABASE_BUSY"

    @classmethod
    def too_long(cls) -> "WriterQueue":
        """It was given up."""
        return cls("many changes are made at this moment; nothing was changed", retry_after_s=_RETRY_AFTER_S)


class ForeignLock(Busy):
    """A session that is not Gatekeeper's, or not getting on, holds a lock."""

    reason = LOCKED.reason

    @classmethod
    def held(cls) -> "ForeignLock":
        """The lock was not free in time."""
        return cls(LOCKED.text, retry_after_s=_RETRY_AFTER_S)


class CommitUnconfirmed(OutcomeUnknown):
    """The connection was lost, or cut, during a COMMIT."""

    @classmethod
    def in_time(cls) -> "CommitUnconfirmed":
        """No confirmation came in time."""
        return cls(
            "the database did not confirm the change in time, so it was made or it was not; repeat the call with the"
            " same request_id, which makes it once, or read the resource first",
            retry_after_s=_RETRY_AFTER_S,
        )


class DatabaseErrors:
    """Counts the errors of the database in this process by SQLSTATE, and logs them, but not each. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._counts: Counter[str] = Counter()
        self._reported: dict[str, tuple[float, int]] = {}

    def counts(self) -> Mapping[str, int]:
        """Return the number of errors by `label_of` their SQLSTATE."""
        with self._lock:
            return dict(self._counts)

    def note(self, exc: psycopg.Error, *, reason: str) -> None:
        """Count an error, and log it if that is due; never its text, which may hold values."""
        label = label_of(exc.sqlstate)
        now = time.monotonic()
        with self._lock:
            self._counts[label] += 1
            reported_at, count_then = self._reported.get(label, (-math.inf, 0))
            if now < reported_at + _REPORT_EVERY_S:
                return
            self._reported[label] = now, self._counts[label]
            count = self._counts[label] - count_then
        _log.warning("database_error", sqlstate=exc.sqlstate, error=type(exc).__name__, reason=reason, count=count)


DATABASE_ERRORS = DatabaseErrors()
"""Those of this process."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translate the psycopg errors of a block. An error without a rule passes unchanged, and is a bug.

    A violated constraint is such an error: under the head lock, operations check first.

    Raises:
        GatekeeperError: The translated error.
    """
    try:
        yield
    except psycopg.Error as exc:
        error = translated(exc)
        DATABASE_ERRORS.note(exc, reason=error.reason if error else GatekeeperError.reason)
        if error is None:
            raise
        raise error from exc


def translated(exc: psycopg.Error) -> GatekeeperError | None:
    """Return the domain error for a psycopg error; None: it is a bug."""
    if isinstance(exc, pg.IntegrityError) and exc.diag.table_name == "audit_log" and not exc.diag.constraint_name:
        return Unavailable(_NO_PARTITION, retry_after_s=_RETRY_AFTER_S)
    cause = _cause(exc)
    if cause is None:
        return None
    retry_after_s = None if cause.kind is InvalidArgument else _RETRY_AFTER_S
    # Never the driver's text: it may hold host names and user data.
    return _kind(exc, cause)(cause.text, reason=cause.reason, retry_after_s=retry_after_s)


def _cause(exc: psycopg.Error) -> Cause | None:
    if exc.sqlstate is not None:
        return cause_of(exc.sqlstate)
    if isinstance(exc, psycopg_pool.TooManyRequests):
        return BUSY
    is_away = isinstance(exc, psycopg.OperationalError | psycopg.InterfaceError)
    return UNREACHABLE if is_away else BUG


def _kind(exc: psycopg.Error, cause: Cause) -> type[GatekeeperError]:
    if isinstance(exc, ConnectFailed | psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed):
        return cause.kind
    if exc.sqlstate is None or exc.sqlstate in _ENDS_CONNECTION:
        return ConnectionLost if cause.kind is Unavailable else cause.kind
    is_conflict = exc.sqlstate.startswith(("40", "72")) and cause.kind is Unavailable
    return WriteConflict if is_conflict else cause.kind
