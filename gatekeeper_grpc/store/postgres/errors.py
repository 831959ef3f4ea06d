"""Translation of psycopg's errors into domain errors; nothing else translates them."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import psycopg_pool
from psycopg import errors as pg

from gatekeeper_grpc.domain.errors import (
    InvalidArgument,
    Unavailable,
)

# The database is unreachable, closing, or too slow: the same call may succeed later.
_UNAVAILABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg_pool.PoolClosed,
    psycopg_pool.PoolTimeout,
    psycopg_pool.TooManyRequests,
    pg.ReadOnlySqlTransaction,
    pg.AdminShutdown,
)


# PostgreSQL names no constraint for a missing partition. Maintenance creates partitions far ahead.
_NO_PARTITION = "the audit log has no partition for the next entry; nothing was changed"


class ConnectionLost(Unavailable):
    """The connection was lost during a transaction. A write may have been committed or not."""


class WriteConflict(Unavailable):
    """PostgreSQL rolled the transaction back because of a concurrent one; a retry will probably succeed."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translate the psycopg errors of a block. An error without a rule passes unchanged, and is a bug.

    A violated constraint is such an error: under the head lock, operations check first.

    Raises:
        GatekeeperError: The translated error.
    """
    try:
        yield
    except pg.IntegrityError as exc:
        if exc.diag.table_name == "audit_log" and not exc.diag.constraint_name:
            raise Unavailable(_NO_PARTITION, retry_after_s=1.0) from exc
        raise
    except (pg.UntranslatableCharacter, pg.CharacterNotInRepertoire) as exc:
        raise InvalidArgument("text holds a character that PostgreSQL cannot store") from exc
    except (pg.DeadlockDetected, pg.SerializationFailure) as exc:
        raise WriteConflict("the change conflicted with a concurrent one", retry_after_s=1.0) from exc
    except _UNAVAILABLE as exc:
        kind = ConnectionLost if _is_lost(exc) else Unavailable
        # Never the driver's text: it may hold host names and user data.
        raise kind("the database is not reachable", retry_after_s=1.0) from exc


def _is_lost(exc: psycopg.Error) -> bool:
    """Return whether an open connection was lost: the driver noticed, or the server reported its shutdown."""
    if isinstance(exc, psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed | psycopg_pool.TooManyRequests):
        return False
    return exc.sqlstate is None or isinstance(exc, pg.AdminShutdown | pg.CrashShutdown)
