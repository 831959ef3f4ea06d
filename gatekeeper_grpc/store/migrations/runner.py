"""Migration runner: brings the database's schema to the version that this code needs, and checks that it is there.

Each migration is one transaction together with its row in the table `schema_migrations`: after a failure or a killed
process either all of it is applied or nothing. A session advisory lock admits one runner at a time, so the DSN must
lead to PostgreSQL itself, not to PgBouncer in transaction mode. `files.py` describes the files.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import LiteralString

import psycopg
import structlog
from psycopg.errors import LockNotAvailable
from psycopg.rows import scalar_row

from gatekeeper_grpc.domain.errors import FailedPrecondition, GatekeeperError, InvalidArgument, Unavailable
from gatekeeper_grpc.store.migrations.applied import (
    CREATE_TABLE,
    FORGET,
    RECORD,
    MigrationState,
    MigrationStatus,
    Session,
    compare,
    read_applied,
)
from gatekeeper_grpc.store.migrations.files import Migration, default_folder, load_migrations
from gatekeeper_grpc.store.migrations.schema import Schema, find_schema, require_encoding, use_schema
from gatekeeper_grpc.store.postgres.dsn import read_dsn
from gatekeeper_grpc.store.postgres.errors import ConnectFailed
from gatekeeper_grpc.store.postgres.pooler import require_session
from gatekeeper_grpc.store.postgres.servers import Servers
from gatekeeper_grpc.store.postgres.session import set_session
from gatekeeper_grpc.store.postgres.sqlstates import cause_of

APPLICATION_NAME = "gatekeeper migrate"

_UP_COMMAND = "gatekeeper migrate up"
_LOCK_POLL_S = 0.1
_LOCK_KEY = 0x6761_7465  # "gate"; advisory locks are per database, so nothing else of ours may use it.

_log = structlog.get_logger()


class SchemaMismatch(FailedPrecondition):
    """The database's schema is not the one this code needs; the message names the remedy."""


# A role may have timeouts that suit requests; they must not end an index build. The connection check makes PostgreSQL
# notice within a second that a runner was killed; without it the backend finishes its statement first, and keeps the
# advisory lock until then.
_PREPARE_SESSION: LiteralString = """
    SELECT set_config('statement_timeout', '0', false),
           set_config('lock_timeout', '0', false),
           set_config('client_connection_check_interval', '1s', false)
"""

# What a refused connection needs, where a caller of the service is told less.
_REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        "28P01": "the user name or the password is wrong",
        "28000": "pg_hba.conf does not let this user in from here, or the role does not exist or may not log in",
        "3D000": "the database {database} does not exist; create it, or correct the name",
        "08P01": "a pooler in between does not let startup parameters pass: PgBouncer needs"
        " ignore_startup_parameters = options",
        "42501": "the role may not connect to the database {database}; GRANT CONNECT ON DATABASE lets it",
    }
)

_TRY_LOCK: LiteralString = "SELECT pg_try_advisory_lock(%(key)s)"

_LIMIT_LOCK_WAIT: LiteralString = "SELECT set_config('lock_timeout', %(timeout)s, true)"


class Migrator:
    """Moves one database's schema up and down, and compares it with the migration files.

    Every method opens a connection of its own and closes it; the constructor does no I/O. Every method raises
    `Unavailable` if the database cannot be reached, and `FailedPrecondition` if it refuses or if the folder is not a
    clean sequence. Messages name the host and never the DSN, which may hold a password.
    """

    def __init__(
        self,
        dsn: str,
        folder: Path | None = None,
        *,
        connect_timeout_s: int = 10,
        lock_deadline_s: float = 60.0,
        lock_timeout_s: float = 5.0,
    ) -> None:
        """Prepare to migrate.

        Args:
            dsn: A connection string or URL; its role must own the schema for `up` and `down`, and be able to read the
                table `schema_migrations` for `status` and `verify`.
            folder: The folder of the files; by default the one that came with this code.
            connect_timeout_s: How long to wait for a server, 2 or more, and for a network that drops packets.
            lock_deadline_s: How long to wait for another runner to finish.
            lock_timeout_s: How long a migration may wait for a table lock, rounded to a millisecond; 0 means no limit.

        Raises:
            InvalidArgument: The DSN cannot be read.
        """
        self._dsn = dsn
        params = read_dsn(dsn)
        self._host = params.get("host", "the local socket")
        self._dbname = params.get("dbname", "")
        self._folder = folder or default_folder()
        self._connect_timeout_s = connect_timeout_s
        self._lock_deadline_s = lock_deadline_s
        self._lock_timeout_s = lock_timeout_s

    def up(self, to: int | None = None) -> list[Migration]:
        """Apply the pending migrations, lowest first.

        Args:
            to: The last version to apply; all by default. A database beyond it is not changed: only `down` reverts.

        Returns:
            The migrations applied by this call, in order; empty if none was pending.

        Raises:
            InvalidArgument: There is no version `to`.
            SchemaMismatch: An applied file was edited, or a newer Gatekeeper migrated this database.
            FailedPrecondition: A migration failed. Those before it stay applied, nothing of it does.
            Unavailable: A lock was not free in time, or the database cannot be reached.
        """
        migrations = load_migrations(self._folder)
        last = len(migrations) if to is None else _existing_version(to, migrations)
        with self._only_runner() as (session, schema):
            states = self._states(session, migrations)
            todo = [step for step in migrations[:last] if states[step.version] is MigrationState.PENDING]
            for step in todo:
                self._run(session, step, script=schema.adapt(step.up_sql), record=RECORD, event="migration_applied")
        return todo

    def down(self, *, steps: int | None = None, to: int | None = None) -> list[Migration]:
        """Revert migrations, newest first. The data in their tables is lost.

        Args:
            steps: How many to revert, 1 or more; fewer are reverted if fewer are applied.
            to: The version to go back to; 0 reverts all. Give exactly one of `steps` and `to`, so that nothing is
                dropped by accident.

        Returns:
            The migrations reverted by this call, in order.

        Raises:
            InvalidArgument: Not exactly one target, or one that does not exist.
            SchemaMismatch: As for `up`.
            FailedPrecondition: As for `up`.
            Unavailable: As for `up`.
        """
        migrations = load_migrations(self._folder)
        _check_target(steps, to, migrations)
        with self._only_runner() as (session, _):
            states = self._states(session, migrations)
            applied = [step for step in reversed(migrations) if states[step.version] is not MigrationState.PENDING]
            todo = applied[:steps] if to is None else [step for step in applied if step.version > to]
            for step in todo:
                self._run(session, step, script=step.down_sql, record=FORGET, event="migration_reverted")
        return todo

    def status(self) -> list[MigrationStatus]:
        """Return the state of each migration in folder and table, lowest first. Changes nothing, takes no lock."""
        migrations = load_migrations(self._folder)
        with self._session() as session:
            return compare(migrations, read_applied(session))

    def verify(self) -> None:
        """Check that the schema is exactly the one this code needs. Changes nothing, takes no lock.

        Raises:
            SchemaMismatch: It is older or newer, or an applied file was edited; the message names the remedy.
        """
        migrations = load_migrations(self._folder)
        with self._session() as session:
            schema, statuses = find_schema(session), compare(migrations, read_applied(session))
        self._require_known(statuses)
        if schema.installed is None and schema.elsewhere:
            raise SchemaMismatch(_not_on_path(schema))
        pending = ", ".join(status.label for status in statuses if status.state is MigrationState.PENDING)
        if pending:
            raise SchemaMismatch(
                f"the database's schema is older than this Gatekeeper; run `{_UP_COMMAND}` to apply {pending}"
            )

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """Connect in autocommit mode, and translate psycopg's errors into the domain's."""
        servers = Servers(
            self._dsn,
            application_name=APPLICATION_NAME,
            tcp_user_timeout=str(self._connect_timeout_s * 1000),
        )
        try:
            with closing(servers.connect(timeout_s=self._connect_timeout_s)) as session:
                # First: a session that is not ours alone must keep its settings.
                require_session(session, lambda: closing(servers.connect(timeout_s=self._connect_timeout_s)))
                require_encoding(session, database=repr(session.info.dbname))
                set_session(session)
                yield session
        except psycopg.Error as exc:
            raise self._refusal(exc) from exc

    def _refusal(self, exc: psycopg.Error) -> GatekeeperError:
        at, words = f"PostgreSQL at {self._host}", _message_of(exc)
        cause = cause_of(exc.sqlstate) if exc.sqlstate else None
        if isinstance(exc, ConnectFailed) and cause:
            words = _REFUSALS.get(exc.sqlstate or "", cause.text).format(database=repr(self._dbname))
            return Unavailable(f"{at} refuses: {words} (SQLSTATE {exc.sqlstate})", reason=cause.reason)
        if not isinstance(exc, psycopg.OperationalError):
            return FailedPrecondition(f"{at} refuses: {words}")
        if cause is None or cause.reason == Unavailable.reason:
            return Unavailable(f"{at} cannot be reached: {words}")
        return Unavailable(f"{at} refuses: {words}", reason=cause.reason)

    @contextmanager
    def _only_runner(self) -> Iterator[tuple[Session, Schema]]:
        """Connect, take the lock and create the table; the end of the session releases the lock."""
        with self._session() as session:
            session.execute(_PREPARE_SESSION)
            self._take_lock(session)
            schema = find_schema(session)
            use_schema(session, schema)
            schema.require_create()
            session.execute(CREATE_TABLE)
            yield session, schema

    def _take_lock(self, session: Session) -> None:
        # Polled, because pg_advisory_lock has no timeout of its own.
        deadline = time.monotonic() + self._lock_deadline_s
        while not session.cursor(row_factory=scalar_row).execute(_TRY_LOCK, {"key": _LOCK_KEY}).fetchone():
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"another process has been migrating the database at {self._host} for {self._lock_deadline_s:g} s:"
                    f" wait for it, or find it in pg_stat_activity as '{APPLICATION_NAME}'; then try again"
                )
            time.sleep(_LOCK_POLL_S)

    def _states(self, session: Session, migrations: Sequence[Migration]) -> Mapping[int, MigrationState]:
        """Compare under the lock, since another runner may just have finished; refuse an edited or newer schema."""
        statuses = compare(migrations, read_applied(session))
        self._require_known(statuses)
        return {status.version: status.state for status in statuses}

    def _require_known(self, statuses: Sequence[MigrationStatus]) -> None:
        unknown = [status.label for status in statuses if status.state is MigrationState.UNKNOWN]
        if unknown:
            raise SchemaMismatch(
                f"the database's schema is newer than this Gatekeeper, which does not know {', '.join(unknown)};"
                " install the newer Gatekeeper that applied this"
            )
        edited = [
            f"{self._folder / status.label}.up.sql" for status in statuses if status.state is MigrationState.EDITED
        ]
        if edited:
            raise SchemaMismatch(
                f"edited after it was applied: {', '.join(edited)};"
                " restore the file as it was, and put the change into a new migration"
            )

    def _run(self, session: Session, migration: Migration, *, script: str, record: LiteralString, event: str) -> None:
        """Run one file and change its row, in one transaction."""
        began = time.monotonic()
        try:
            with session.transaction():
                # While ALTER TABLE waits for a lock, every later reader of that table queues up behind it.
                session.execute(_LIMIT_LOCK_WAIT, {"timeout": f"{round(self._lock_timeout_s * 1000)}ms"})
                # The row first: the file may change the search path.
                session.execute(record, asdict(migration))
                session.execute(script.encode())
        except psycopg.Error as exc:
            if session.broken:
                raise
            raise self._failure(exc, migration, script) from exc
        _log.info(event, version=migration.version, name=migration.name, duration_s=round(time.monotonic() - began, 3))

    def _failure(self, exc: psycopg.Error, migration: Migration, script: str) -> GatekeeperError:
        cause = _message_of(exc)
        if isinstance(exc, LockNotAvailable):
            cause = f"another session kept a table locked for {self._lock_timeout_s:g} s"
        # Locks, deadlocks, a full disk: the same file may succeed later.
        kind = Unavailable if isinstance(exc, psycopg.OperationalError) else FailedPrecondition
        known = cause_of(exc.sqlstate) if exc.sqlstate and kind is Unavailable else None
        return kind(
            f"migration {migration.label} failed{_line_of(exc, script)}: {cause};"
            " nothing of it was applied; correct this and try again",
            reason=known.reason if known else None,
        )


def _existing_version(version: int, migrations: Sequence[Migration]) -> int:
    if not 0 <= version <= len(migrations):
        raise InvalidArgument.of("to", f"must be 0 to {len(migrations)}, the newest migration")
    return version


def _check_target(steps: int | None, to: int | None, migrations: Sequence[Migration]) -> None:
    if (steps is None) == (to is None):
        raise InvalidArgument("going down needs exactly one target: a number of steps, or the version to go back to")
    if steps is not None and steps < 1:
        raise InvalidArgument.of("steps", "must be 1 or more")
    if to is not None:
        _existing_version(to, migrations)


def _not_on_path(schema: Schema) -> str:
    return (
        f"the role finds no installation on its search path ({schema.search_path}), but the database has one in the"
        f" schema {', '.join(schema.elsewhere)}: name it with options=-csearch_path in DATABASE_URL, and give the role"
        " its privileges with `gatekeeper grants`"
    )


def _message_of(exc: psycopg.Error) -> str:
    return exc.diag.message_primary or next(iter(str(exc).splitlines()), type(exc).__name__)


def _line_of(exc: psycopg.Error, script: str) -> str:
    position = exc.diag.statement_position
    return f" at line {script.count(chr(10), 0, int(position) - 1) + 1}" if position else ""
