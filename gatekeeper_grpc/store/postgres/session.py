"""The session settings that our SQL and psycopg depend on, the same on every connection.

The server, the database, the role, a service file and the environment (PGDATESTYLE) may set others. Ours go into the
start of a connection, because a standby refuses every statement under a serializable default. The first statement sets
them once more, because libpq lets the environment win over the start. The operator's own options stay, such as
`-csearch_path=flags`. Other settings are the operator's to decide, above all `default_transaction_read_only`, which
fences a former primary.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, LiteralString

import psycopg
from psycopg import pq

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "DateStyle": "ISO,YMD",  # psycopg reads no other.
        "IntervalStyle": "postgres",
        "TimeZone": "UTC",  # The audit log hashes the text of times.
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "standard_conforming_strings": "on",
        "array_nulls": "on",
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        "client_min_messages": "notice",  # A warning at a COMMIT is how a cancelled wait for a standby shows.
        "exit_on_error": "off",
    }
)
_ENCODING: Final = "UTF8"


def with_session_settings(params: Mapping[str, str]) -> dict[str, str]:
    """Return libpq's parameters of a connection with our settings added to the operator's options."""
    # A service file may hold options, which ours would replace; there, the first statement alone sets them.
    options = {} if "service" in params else {"options": f"{params.get('options') or _default_options()} {_OPTIONS}"}
    return {**params, **options, "client_encoding": _ENCODING}


def _default_options() -> str:
    """Return PGOPTIONS, which libpq reads only if a connection has no options of its own."""
    return next((each.val or b"" for each in pq.Conninfo.get_defaults() if each.keyword == b"options"), b"").decode()


_OPTIONS = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in SETTINGS.items())

# The path is reduced to the one schema that our tables are in, so that no table of another schema comes before them.
_SET: LiteralString = """
    SELECT set_config(name, value, false) FROM unnest(%(names)s::text[], %(values)s::text[]) AS setting (name, value)
    UNION ALL
    SELECT set_config('search_path', quote_ident(nspname) || ', pg_temp', false)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass('revision_head')
"""


def set_session(conn: psycopg.Connection[Any], **more: str) -> None:
    """Set the session settings, and `more`, on a new connection, in one round trip."""
    settings = {**SETTINGS, "client_encoding": _ENCODING, **more}
    conn.execute(_SET, {"names": list(settings), "values": list(settings.values())}, prepare=False)
