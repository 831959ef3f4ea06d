"""Reads a libpq URL or keyword string: the one place that does, because libpq's own errors quote the password."""

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict

from gatekeeper_grpc.domain.errors import InvalidArgument

_LAST_PORT = 65_535
_SHOULD_BE = (
    # pragma: allowlist nextline secret
    "must be postgresql://user:password@host:5432/database, or libpq's keywords (host=... dbname=...), without quotes"
    " around it. In a URL, percent-encode special characters: % as %25, @ as %40, / as %2F, : as %3A, a space as %20;"
    " and in options, = as %3D"
)


def read_dsn(dsn: str, *, name: str = "the database DSN (DATABASE_URL)") -> dict[str, str]:
    """Return the parameters of a DSN by libpq's keywords.

    Args:
        dsn: A libpq URL or keyword string.
        name: What the error calls it.

    Raises:
        InvalidArgument: The DSN cannot be read, or a part of the password is where the host or database should be. The
            message repeats no part of it.
    """
    try:
        params = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    except (psycopg.Error, ValueError):  # ValueError: what is percent-encoded is not UTF-8.
        raise _unreadable(name) from None
    if not dsn.strip() or _has_stray_password(dsn, params) or not _are_ports(params.get("port", "")):
        raise _unreadable(name)
    return params


def _has_stray_password(dsn: str, params: dict[str, str]) -> bool:
    """Return whether a bare @ or / in a password has made libpq take a part of it for the host or the database."""
    _, is_url, rest = dsn.partition("://")
    path = rest.partition("?")[0].partition("/")[2]
    return "@" in params.get("host", "") or (bool(is_url) and "@" in path)


def _are_ports(ports: str) -> bool:
    return all(
        not port or (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) <= _LAST_PORT) for port in ports.split(",")
    )


def _unreadable(name: str) -> InvalidArgument:
    return InvalidArgument(f"{name} cannot be read: it {_SHOULD_BE}")
