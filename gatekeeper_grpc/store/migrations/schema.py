"""The schema of an installation: where its tables are, or where a fresh one will be (decision 0030)."""

from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.store.migrations.applied import Session

_ENCODING = "UTF8"
# 0001 is frozen. Its function looks there for the tables that the same migration creates.
_FROZEN_PATH = "SET search_path = public, pg_temp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What the session of a runner finds on its search path."""

    installed: str | None
    """The schema that has an installation, of several the first on the path; None: none has."""
    current: str | None
    """The schema that new tables would be in; None: no schema of the path exists, or the role may not use it."""
    search_path: str
    may_create: bool
    """Whether the role may create tables in `installed`, or else in `current`."""
    elsewhere: tuple[str, ...]
    """Other schemas of the database that have an installation."""

    @property
    def name(self) -> str:
        """The schema to use.

        Raises:
            FailedPrecondition: There is none; the message names the remedy.
        """
        name = self.installed or self.current
        if name is None:
            raise FailedPrecondition(
                f"no schema of the search path ({self.search_path}) exists, or the role may use none of them: CREATE"
                " SCHEMA ... AUTHORIZATION the role, or name another with options=-csearch_path in DATABASE_URL"
            )
        return name

    def require_create(self) -> None:
        """Refuse to begin in a schema in which the role may not create.

        Raises:
            FailedPrecondition: The role may not; the message names the remedy.
        """
        if not self.may_create:
            raise FailedPrecondition(
                f"the role may not create tables in the schema {self.name}; nothing was changed. Let its owner GRANT"
                f" CREATE ON SCHEMA {sql.Identifier(self.name).as_string(None)} TO the role, or give the role a schema"
                " of its own: CREATE SCHEMA AUTHORIZATION the role; its tables are then in that one"
            )

    def adapt(self, script: str) -> str:
        """Return the text of a migration as it is run in this schema."""
        return script.replace(_FROZEN_PATH, f"SET search_path = {sql.Identifier(self.name).as_string(None)}, pg_temp")


_FIND: LiteralString = """
    WITH installation AS (
        SELECT n.oid, n.nspname::text AS name, c.oid = to_regclass('revision_head') AS is_found
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relname = 'revision_head' AND c.relkind = 'r'
    ), found AS (
        SELECT (SELECT name FROM installation WHERE is_found) AS installed, current_schema()::text AS current
    )
    SELECT installed, current, current_setting('search_path') AS search_path,
           coalesce(has_schema_privilege(coalesce(installed, current), 'CREATE'), false) AS may_create,
           ARRAY(SELECT name FROM installation WHERE is_found IS NOT TRUE ORDER BY name) AS elsewhere
    FROM found
"""
_USE: LiteralString = "SELECT set_config('search_path', quote_ident(%(name)s) || ', pg_temp', false)"


def find_schema(session: Session) -> Schema:
    """Find the schema on the session's search path."""
    with session.cursor(row_factory=class_row(Schema)) as cursor:
        found = cursor.execute(_FIND).fetchone()
    assert found is not None  # noqa: S101 - the statement always yields a row
    return found


def use_schema(session: Session, schema: Schema) -> None:
    """Let the session find and create tables in one schema only."""
    session.execute(_USE, {"name": schema.name})


def require_encoding(session: psycopg.Connection, *, database: str) -> None:
    """Refuse a database whose encoding cannot hold every text.

    Raises:
        FailedPrecondition: The encoding is not UTF8; the message names it and the remedy.
    """
    encoding = session.info.parameter_status("server_encoding")
    if encoding != _ENCODING:
        raise FailedPrecondition(
            f"the database {database} has the encoding {encoding}, which cannot hold every text; Gatekeeper needs"
            " UTF8. Make another one: CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
