"""The table of applied migrations, compared with the files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import LiteralString

import psycopg
from psycopg.errors import UndefinedTable
from psycopg.rows import TupleRow, class_row

from gatekeeper_grpc.store.migrations.files import Migration, Numbered

Session = psycopg.Connection[TupleRow]


class MigrationState(StrEnum):
    """The state of one migration.

    An EDITED file was changed after it was applied. An UNKNOWN migration is in the table and not in the folder: a newer
    Gatekeeper applied it.
    """

    PENDING = "pending"
    DONE = "done"
    EDITED = "edited"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStatus(Numbered):
    """The state of one migration; `applied_time` (UTC) is None until it is applied."""

    state: MigrationState
    applied_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _AppliedRow(Numbered):
    checksum: str
    state: str
    applied_time: datetime | None


# Databases have this table: a row may be 'started', which no migration writes since each runs in one transaction.
CREATE_TABLE: LiteralString = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version      integer     CONSTRAINT schema_migrations_pkey PRIMARY KEY,
        name         text        NOT NULL,
        checksum     text        NOT NULL,
        state        text        NOT NULL CONSTRAINT schema_migrations_state CHECK (state IN ('started', 'done')),
        applied_time timestamptz,
        CONSTRAINT schema_migrations_applied_time CHECK ((applied_time IS NULL) = (state = 'started'))
    )
"""

_READ_APPLIED: LiteralString = "SELECT version, name, checksum, state, applied_time FROM schema_migrations"

RECORD: LiteralString = """
    INSERT INTO schema_migrations (version, name, checksum, state, applied_time)
    VALUES (%(version)s, %(name)s, %(checksum)s, 'done', clock_timestamp())
    ON CONFLICT (version) DO UPDATE
    SET name = excluded.name, checksum = excluded.checksum, state = 'done', applied_time = excluded.applied_time
"""

FORGET: LiteralString = "DELETE FROM schema_migrations WHERE version = %(version)s"


def read_applied(session: Session) -> Mapping[int, _AppliedRow]:
    """Read the rows of the table, by version; none if there is no table."""
    try:
        rows = session.cursor(row_factory=class_row(_AppliedRow)).execute(_READ_APPLIED).fetchall()
    except UndefinedTable:
        return {}  # Nobody has migrated this database yet.
    return {row.version: row for row in rows}


def compare(migrations: Sequence[Migration], applied: Mapping[int, _AppliedRow]) -> list[MigrationStatus]:
    """Return the state of each migration that is a file or a row, lowest version first."""
    files = {migration.version: migration for migration in migrations}
    identities: dict[int, Numbered] = {**applied, **files}
    return [_status(identities[v], files.get(v), applied.get(v)) for v in sorted(identities)]


def _status(identity: Numbered, migration: Migration | None, row: _AppliedRow | None) -> MigrationStatus:
    return MigrationStatus(
        version=identity.version,
        name=identity.name,
        state=_state(migration, row),
        applied_time=row.applied_time.astimezone(UTC) if row and row.applied_time else None,
    )


def _state(migration: Migration | None, row: _AppliedRow | None) -> MigrationState:
    if migration is None:
        return MigrationState.UNKNOWN
    if row is None or row.state != MigrationState.DONE:
        return MigrationState.PENDING
    return MigrationState.DONE if row.checksum == migration.checksum else MigrationState.EDITED
