"""Translation of psycopg's errors into domain errors; nothing else translates them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import psycopg
import psycopg_pool
from psycopg import errors as pg

from gatekeeper_grpc.domain.errors import (
    AlreadyExists,
    FailedPrecondition,
    GatekeeperError,
    InvalidArgument,
    Unavailable,
)

# The error for each violated constraint, by its name in migrations/. Operations know the key and the field, so they
# check first; this table catches what they miss.
_CONSTRAINTS: Mapping[str, GatekeeperError] = MappingProxyType(
    {
        "idx_flags_key": AlreadyExists("a flag with this key exists already"),
        "segments_key_key": AlreadyExists("a segment with this key exists already"),
        "users_pkey": AlreadyExists("a user with this id is known already"),
        "admin_user_username_key": AlreadyExists("an admin user with this name exists already"),
        "flag_segments_segment_fkey": FailedPrecondition("a flag uses this segment", reason="SEGMENT_IN_USE"),
    }
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

    Raises:
        GatekeeperError: The translated error.
    """
    try:
        yield
    except pg.IntegrityError as exc:
        if exc.diag.table_name == "audit_log" and not exc.diag.constraint_name:
            raise Unavailable(_NO_PARTITION, retry_after_s=1.0) from exc
        known = _CONSTRAINTS.get(exc.diag.constraint_name or "")
        if known is None:
            raise
        raise type(known)(str(known), reason=known.reason) from exc
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
