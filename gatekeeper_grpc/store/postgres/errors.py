"""The border between psycopg and the domain: every database failure becomes a domain error here, and nowhere else."""

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

# What a violated constraint means, by its name in migrations/. Operations know more than a constraint does (which key,
# which field), so they check first and this is the net below them.
_CONSTRAINTS: Mapping[str, GatekeeperError] = MappingProxyType(
    {
        "idx_flags_key": AlreadyExists("a flag with this key exists already"),
        "segments_key_key": AlreadyExists("a segment with this key exists already"),
        "users_pkey": AlreadyExists("a user with this id is known already"),
        "admin_user_username_key": AlreadyExists("an admin user with this name exists already"),
        "flag_segments_segment_fkey": FailedPrecondition("a flag uses this segment", reason="SEGMENT_IN_USE"),
    }
)

# The database is away, closing, or too slow to wait for: the same call may succeed later.
_AWAY = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg_pool.PoolClosed,
    psycopg_pool.PoolTimeout,
    psycopg_pool.TooManyRequests,
    pg.ReadOnlySqlTransaction,
    pg.AdminShutdown,
)


# What PostgreSQL says without naming a constraint. The transaction is undone; maintenance makes partitions far ahead.
_NO_PARTITION = "the audit log has no partition for the next entry; nothing was changed"


class ConnectionLost(Unavailable):
    """The connection was lost in the middle. Of a write nobody knows then whether it was committed."""


class WriteConflict(Unavailable):
    """PostgreSQL undid the transaction because it was in another one's way; done again it will probably succeed."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what psycopg raises inside into domain errors; what no rule knows passes as it is, and is a bug."""
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
        raise WriteConflict("the database was busy with a conflicting change", retry_after_s=1.0) from exc
    except _AWAY as exc:
        kind = ConnectionLost if _is_lost(exc) else Unavailable
        # Never the driver's text: it may hold host names, and users' data.
        raise kind("the database is not reachable", retry_after_s=1.0) from exc


def _is_lost(exc: psycopg.Error) -> bool:
    """Whether a connection was there and is no more: the driver found out, or the server said that it shuts down."""
    if isinstance(exc, psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed | psycopg_pool.TooManyRequests):
        return False
    return exc.sqlstate is None or isinstance(exc, pg.AdminShutdown | pg.CrashShutdown)
