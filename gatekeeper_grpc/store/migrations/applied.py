"""Applied migrations: which ones a database has had, compared with the files."""

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
    """Where one migration stands.

    STARTED is a no-transaction migration that was interrupted. EDITED was changed after it was applied. UNKNOWN is in
    the table and not in the folder: a newer Gatekeeper applied it.
    """

    PENDING = "pending"
    STARTED = "started"
    DONE = "done"
    EDITED = "edited"
    UNKNOWN = "unknown"


TO_RUN = frozenset({MigrationState.PENDING, MigrationState.STARTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStatus(Numbered):
    """A migration as files and table show it together; `applied_time` (UTC) is None until all of it is applied."""

    state: MigrationState
    applied_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _AppliedRow(Numbered):
    checksum: str
    state: str
    applied_time: datetime | None


CREATE_LEDGER: LiteralString = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version      integer     CONSTRAINT schema_migrations_pkey PRIMARY KEY,
        name         text        NOT NULL,
        checksum     text        NOT NULL,
        state        text        NOT NULL CONSTRAINT schema_migrations_state CHECK (state IN ('started', 'done')),
        applied_time timestamptz,
        CONSTRAINT schema_migrations_applied_time CHECK ((applied_time IS NULL) = (state = 'started'))
    )
"""

_READ_LEDGER: LiteralString = "SELECT version, name, checksum, state, applied_time FROM schema_migrations"

RECORD_STARTED: LiteralString = """
    INSERT INTO schema_migrations (version, name, checksum, state)
    VALUES (%(version)s, %(name)s, %(checksum)s, 'started')
    ON CONFLICT (version) DO UPDATE
    SET name = excluded.name, checksum = excluded.checksum, state = 'started', applied_time = NULL
"""

RECORD_DONE: LiteralString = """
    INSERT INTO schema_migrations (version, name, checksum, state, applied_time)
    VALUES (%(version)s, %(name)s, %(checksum)s, 'done', clock_timestamp())
    ON CONFLICT (version) DO UPDATE
    SET name = excluded.name, checksum = excluded.checksum, state = 'done', applied_time = excluded.applied_time
"""

FORGET: LiteralString = "DELETE FROM schema_migrations WHERE version = %(version)s"


def ledger_fields(migration: Migration) -> dict[str, object]:
    """Return the parameters of the statements that record a migration."""
    return {"version": migration.version, "name": migration.name, "checksum": migration.checksum}


def read_ledger(session: Session) -> Mapping[int, _AppliedRow]:
    """Read which migrations a database has had, by version."""
    try:
        rows = session.cursor(row_factory=class_row(_AppliedRow)).execute(_READ_LEDGER).fetchall()
    except UndefinedTable:
        return {}  # Nobody has migrated this database yet.
    return {row.version: row for row in rows}


def compare(migrations: Sequence[Migration], applied: Mapping[int, _AppliedRow]) -> list[MigrationStatus]:
    """Say where each migration of files and table stands, lowest first."""
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
    if row is None:
        return MigrationState.PENDING
    # Before the checksum: a no-transaction file that failed may be mended, since it runs again from the top.
    if row.state == MigrationState.STARTED:
        return MigrationState.STARTED
    return MigrationState.DONE if row.checksum == migration.checksum else MigrationState.EDITED
