"""What each SQLSTATE means to a caller and to an operator: one decision for each class, and for codes that differ.

Source: appendix A of PostgreSQL's manual. A test walks all codes that psycopg knows, and provokes those that a real
server can be made to send.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gatekeeper_grpc.domain.errors import Busy, GatekeeperError, InvalidArgument, OutcomeUnknown, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why PostgreSQL refuses, as a caller is told it.

    A caller cannot correct any of them but bad input, so the remedies are in docs/operations/database-errors.md.
    """

    reason: str
    text: str
    kind: type[GatekeeperError] = Unavailable
    is_permanent: bool = False
    """Whether a connection will go on to be refused until an operator acts; it is not tried again at once."""


UNREACHABLE: Final = Cause(reason="UNAVAILABLE", text="the database is not reachable")
BUSY: Final = Cause(
    reason="DATABASE_BUSY", kind=Busy, text="all connections to the database are in use; nothing was changed"
)
LOCKED: Final = Cause(
    reason="DATABASE_LOCKED",
    kind=Busy,
    text="another session of the database holds a lock that this call needs, and the log names it; nothing was changed",
)
NOT_ACCEPTING: Final = Cause(
    reason="DATABASE_NOT_ACCEPTING", text="the database takes no connections: it starts, stops or recovers"
)
STORAGE_FULL: Final = Cause(
    reason="STORAGE_FULL", text="the disk of the database is full, or its quota is used up; nothing was changed"
)
_STORAGE_FAILED = Cause(
    reason="STORAGE_FAILED", text="the storage of the database fails: it cannot read or write its files"
)
_ENDED = Cause(reason="UNAVAILABLE", text="the database ended the connection")
_CONFLICT = Cause(reason="UNAVAILABLE", text="the change conflicted with a concurrent one")
_TIMEOUT = Cause(
    reason="DATABASE_TIMEOUT",
    text="a statement took longer than the caller's deadline or the server's limit; nothing was changed",
)
_CREDENTIALS = Cause(
    reason="DATABASE_CREDENTIALS_REFUSED", text="the database refuses the credentials of this server", is_permanent=True
)
_MISSING = Cause(
    reason="DATABASE_MISSING", text="the database that this server is configured for does not exist", is_permanent=True
)
_READ_ONLY = Cause(
    reason="DATABASE_READ_ONLY",
    text="the database takes no writes: it is a standby or a fenced primary; nothing was changed",
)
_PERMISSION = Cause(
    reason="DATABASE_PERMISSION_DENIED",
    text="the database role of this server lacks a privilege; nothing was changed",
    is_permanent=True,
)
_SCHEMA = Cause(reason="DATABASE_SCHEMA_UNFIT", text="the schema of the database is not the one that this server needs")
_TOO_MANY_CONNECTIONS = Cause(
    reason="DATABASE_TOO_MANY_CONNECTIONS", text="the database has no connection left for this server"
)
_OVERLOADED = Cause(
    reason="DATABASE_OVERLOADED", text="the database has used up its memory or another resource; nothing was changed"
)
_BAD_TEXT = Cause(
    reason="INVALID_ARGUMENT", kind=InvalidArgument, text="text holds a character that PostgreSQL cannot store"
)
_OUTCOME_UNKNOWN = Cause(reason="OUTCOME_UNKNOWN", kind=OutcomeUnknown, text="the outcome of the change is unknown")

# None: the server's own fault, which is INTERNAL to a caller and a stack trace in the log.
BUG: Final = None

_CLASSES: Mapping[str, Cause | None] = MappingProxyType(
    {
        "02": BUG,  # no data
        "03": BUG,  # a statement is not complete yet
        "08": UNREACHABLE,  # connection exceptions
        "09": BUG,  # a triggered action failed
        "0A": BUG,  # a feature is not supported
        "0B": BUG,  # a transaction is begun wrongly
        "0F": BUG,  # locators
        "0L": BUG,  # grantors
        "0P": BUG,  # role specifications
        "0Z": BUG,  # diagnostics
        "10": BUG,  # XQuery
        "20": BUG,  # no case applies
        "21": BUG,  # a subquery yields too many rows
        "22": BUG,  # data exceptions: input is validated before it is sent
        "23": BUG,  # integrity constraints: under the head lock, operations check first
        "24": BUG,  # cursor states
        "25": BUG,  # transaction states
        "26": BUG,  # names of prepared statements
        "27": BUG,  # a trigger changed data twice
        "28": _CREDENTIALS,  # authorization
        "2B": BUG,  # privileges depend on each other
        "2D": BUG,  # a transaction is ended wrongly
        "2F": BUG,  # SQL routines
        "34": BUG,  # names of cursors
        "38": BUG,  # external routines
        "39": BUG,  # calls of external routines
        "3B": BUG,  # savepoints
        "3D": _MISSING,  # databases
        "3F": _SCHEMA,  # schemas
        "40": _CONFLICT,  # PostgreSQL rolled the transaction back
        "42": BUG,  # syntax and access rules
        "44": BUG,  # WITH CHECK OPTION
        "53": _OVERLOADED,  # resources
        "54": BUG,  # limits of statements
        "55": BUG,  # objects are not in the state that a statement needs
        "57": NOT_ACCEPTING,  # an operator intervened
        "58": _STORAGE_FAILED,  # errors outside PostgreSQL
        "72": _CONFLICT,  # a snapshot is too old
        "F0": NOT_ACCEPTING,  # the configuration file
        "HV": BUG,  # foreign data
        "P0": BUG,  # PL/pgSQL: the triggers that guard the audit log
        "XX": BUG,  # internal errors of PostgreSQL
    }
)
_CODES: Mapping[str, Cause | None] = MappingProxyType(
    {
        "22021": _BAD_TEXT,  # character not in repertoire
        "22P05": _BAD_TEXT,  # untranslatable character
        "25006": _READ_ONLY,
        "25P03": _TIMEOUT,  # idle in transaction for too long
        "25P04": _TIMEOUT,  # the transaction lasted too long
        "40003": _OUTCOME_UNKNOWN,
        "40P01": _CONFLICT,  # deadlock
        "42501": _PERMISSION,
        "42703": _SCHEMA,  # undefined column
        "42704": _SCHEMA,  # undefined object
        "42883": _SCHEMA,  # undefined function
        "42P01": _SCHEMA,  # undefined table
        "53100": STORAGE_FULL,
        "53300": _TOO_MANY_CONNECTIONS,
        "55000": NOT_ACCEPTING,  # at the connection: ALLOW_CONNECTIONS is false
        "55006": LOCKED,  # object in use
        "55P03": LOCKED,
        "57014": _TIMEOUT,
        "57P01": _ENDED,
        "57P02": _ENDED,
        "57P04": _MISSING,  # the database was dropped
        "57P05": UNREACHABLE,  # an idle session was ended
        "XX001": _STORAGE_FAILED,  # data corrupted
        "XX002": _STORAGE_FAILED,  # index corrupted
    }
)


def cause_of(sqlstate: str) -> Cause | None:
    """Return what a SQLSTATE means; None: a bug of this server."""
    return _CODES[sqlstate] if sqlstate in _CODES else _CLASSES.get(sqlstate[:2], BUG)


def label_of(sqlstate: str | None) -> str:
    """Return a SQLSTATE as a label of bounded variety: a code with a decision of its own, else its class.

    "none" is an error of the driver, such as a lost connection; "other" a class that this table does not have.
    """
    if sqlstate is None:
        return "none"
    if sqlstate in _CODES:
        return sqlstate
    return sqlstate[:2] if sqlstate[:2] in _CLASSES else "other"
