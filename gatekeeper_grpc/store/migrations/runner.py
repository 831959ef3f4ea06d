"""Migrations: brings the database's schema to the version this code was written for, and says when it is not there.

Each migration is one transaction together with its row in the table `schema_migrations`, so a failure or a killed
process leaves all of it or nothing. One runner works at a time, by a session advisory lock: the DSN must lead to
PostgreSQL itself, not to PgBouncer in transaction mode. `migration_files` describes the files.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import structlog
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import LockNotAvailable
from psycopg.rows import scalar_row

from gatekeeper_grpc.domain.errors import FailedPrecondition, GatekeeperError, InvalidArgument, Unavailable
from gatekeeper_grpc.store.migrations.applied import (
    CREATE_LEDGER,
    FORGET,
    RECORD_DONE,
    RECORD_STARTED,
    TO_RUN,
    MigrationState,
    MigrationStatus,
    Session,
    compare,
    ledger_fields,
    read_ledger,
)
from gatekeeper_grpc.store.migrations.files import ConcurrentIndex, Migration, default_folder, load_migrations
from gatekeeper_grpc.store.postgres.servers import to_primary

APPLICATION_NAME = "gatekeeper migrate"

_UP_COMMAND = "gatekeeper migrate up"
_LOCK_POLL_S = 0.1
_LOCK_KEY = 0x6761_7465  # "gate"; advisory locks are per database, so nothing else of ours may use it.

_log = structlog.get_logger()


class SchemaMismatch(FailedPrecondition):
    """The database's schema is not the one this code was written for; the message says what to do."""


# Timeouts that a role has for the sake of requests must not cut an index build short. The connection check makes
# PostgreSQL notice within a second that a runner was killed; else its backend would finish the statement first, and
# keep the advisory lock until then.
_PREPARE_SESSION: LiteralString = """
    SELECT set_config('statement_timeout', '0', false),
           set_config('lock_timeout', '0', false),
           set_config('client_connection_check_interval', '1s', false)
"""

_TRY_LOCK: LiteralString = "SELECT pg_try_advisory_lock(%(key)s)"

_LIMIT_LOCK_WAIT: LiteralString = "SELECT set_config('lock_timeout', %(timeout)s, true)"

# format() answers with the whole statement, its names quoted by the server.
_DROP_INVALID_INDEX: LiteralString = """
    SELECT format('DROP INDEX CONCURRENTLY IF EXISTS %%I.%%I', namespace.nspname, class.relname)
    FROM pg_index AS index
    JOIN pg_class AS class ON class.oid = index.indexrelid
    JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
    WHERE index.indrelid = to_regclass(%(table)s) AND class.relname = %(name)s AND NOT index.indisvalid
"""


class Migrator:
    """Moves one database's schema up and down, and compares it with the migration files.

    Every method opens a connection of its own and closes it; the constructor does no I/O. All may raise `Unavailable`
    when the database is away and `FailedPrecondition` when it refuses, or when the folder is not a clean sequence.
    Messages name the host and never the DSN, which may hold a password.
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
            dsn: A connection string or URL; its role must own the schema for `up` and `down`, and may read that table
                for the others.
            folder: Where the files are; by default those that came with this code.
            connect_timeout_s: How long to wait for a server, 2 or more, and for a network that swallows what is sent.
            lock_deadline_s: How long to wait for another runner to finish.
            lock_timeout_s: How long a migration may wait for a table that others use, rounded to a millisecond; 0 is
                for ever.

        Raises:
            InvalidArgument: The DSN cannot be read.
        """
        self._dsn = dsn
        self._host = _host_of(dsn)
        self._folder = folder or default_folder()
        self._connect_timeout_s = connect_timeout_s
        self._lock_deadline_s = lock_deadline_s
        self._lock_timeout_s = lock_timeout_s

    def up(self, to: int | None = None) -> list[Migration]:
        """Apply what is pending, lowest first, and run an interrupted no-transaction migration again.

        Args:
            to: The last version to apply; all by default. A database beyond it stays as it is: only `down` goes back.

        Returns:
            The migrations applied by this call, in order; empty when nothing was left to do.

        Raises:
            InvalidArgument: There is no version `to`.
            SchemaMismatch: An applied file was edited, or a newer Gatekeeper migrated this database.
            FailedPrecondition: A migration failed. Those before it stay applied; the message says what is left of it.
            Unavailable: A lock was not to be had in time, or the database is away.
        """
        migrations = load_migrations(self._folder)
        last = len(migrations) if to is None else _existing_version(to, migrations)
        with self._only_runner() as session:
            states = self._states(session, migrations)
            todo = [step for step in migrations[:last] if states[step.version] in TO_RUN]
            for step in todo:
                self._run(session, step, script=step.up_sql, settle=RECORD_DONE, event="migration_applied")
        return todo

    def down(self, *, steps: int | None = None, to: int | None = None) -> list[Migration]:
        """Revert migrations, newest first. What their tables hold is lost.

        Args:
            steps: How many to revert, 1 or more; fewer are reverted when fewer are applied.
            to: The version to go back to; 0 reverts all. Exactly one of `steps` and `to` is given: nobody drops
                everything by accident.

        Returns:
            The migrations reverted by this call, in order.

        Raises:
            InvalidArgument: Not exactly one target, or one that does not exist.
            SchemaMismatch: As for `up`.
            FailedPrecondition: As for `up`.
            Unavailable: As for `up`.
        """
        migrations = load_migrations(self._folder)
        _check_way_back(steps, to, migrations)
        with self._only_runner() as session:
            states = self._states(session, migrations)
            applied = [step for step in reversed(migrations) if states[step.version] is not MigrationState.PENDING]
            todo = applied[:steps] if to is None else [step for step in applied if step.version > to]
            for step in todo:
                self._run(session, step, script=step.down_sql, settle=FORGET, event="migration_reverted")
        return todo

    def status(self) -> list[MigrationStatus]:
        """Say where each migration of folder and table stands, lowest first. Changes nothing, waits for nobody."""
        migrations = load_migrations(self._folder)
        with self._session() as session:
            return compare(migrations, read_ledger(session))

    def verify(self) -> None:
        """Return when the schema is exactly the one this code needs. Changes nothing, waits for nobody.

        Raises:
            SchemaMismatch: It is older or newer, or an applied file was edited; the message names the remedy.
        """
        statuses = self.status()
        self._require_known(statuses)
        behind = [status for status in statuses if status.state in TO_RUN]
        if behind:
            listed = ", ".join(f"{status.label} ({status.state})" for status in behind)
            raise SchemaMismatch(
                f"the database's schema is older than this Gatekeeper; run `{_UP_COMMAND}` to apply {listed}"
            )

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """Connect in autocommit mode, for the length of a block; here psycopg's errors become the domain's."""
        try:
            with psycopg.connect(
                to_primary(self._dsn),
                autocommit=True,
                application_name=APPLICATION_NAME,
                connect_timeout=self._connect_timeout_s,
                tcp_user_timeout=self._connect_timeout_s * 1000,
                client_encoding="utf8",  # What the files are in, whatever the database is in.
            ) as session:
                yield session
        except psycopg.OperationalError as exc:
            raise Unavailable(f"PostgreSQL at {self._host} is away: {_words_of(exc)}") from exc
        except psycopg.Error as exc:
            raise FailedPrecondition(f"PostgreSQL at {self._host} refuses: {_words_of(exc)}") from exc

    @contextmanager
    def _only_runner(self) -> Iterator[Session]:
        """Connect as the one runner, with its table made; the end of the session frees the lock, however it ends."""
        with self._session() as session:
            session.execute(_PREPARE_SESSION)
            self._take_lock(session)
            session.execute(CREATE_LEDGER)
            yield session

    def _take_lock(self, session: Session) -> None:
        # Polled, because a session that waits inside pg_advisory_lock holds a snapshot, for whose end the runner's
        # CREATE INDEX CONCURRENTLY would wait in turn: a deadlock.
        deadline = time.monotonic() + self._lock_deadline_s
        while not session.cursor(row_factory=scalar_row).execute(_TRY_LOCK, {"key": _LOCK_KEY}).fetchone():
            if time.monotonic() >= deadline:
                raise Unavailable(
                    f"another process has been migrating the database at {self._host} for {self._lock_deadline_s:g} s:"
                    f" wait for it, or find it in pg_stat_activity as '{APPLICATION_NAME}'; then try again"
                )
            time.sleep(_LOCK_POLL_S)

    def _states(self, session: Session, migrations: Sequence[Migration]) -> Mapping[int, MigrationState]:
        """Compare under the lock, since another runner may just have finished; refuse a schema edited or newer."""
        statuses = compare(migrations, read_ledger(session))
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

    def _run(self, session: Session, migration: Migration, *, script: str, settle: LiteralString, event: str) -> None:
        """Run one file and settle its row in the table, both or neither where a transaction can promise that."""
        began = time.monotonic()
        run = self._run_in_transaction if migration.transactional else _run_repeatable
        try:
            run(session, migration, script, settle)
        except psycopg.Error as exc:
            if session.broken:
                raise
            raise self._failure(exc, migration, script) from exc
        _log.info(event, version=migration.version, name=migration.name, duration_s=round(time.monotonic() - began, 3))

    def _run_in_transaction(self, session: Session, migration: Migration, script: str, settle: LiteralString) -> None:
        with session.transaction():
            # While ALTER TABLE waits for a lock, every later reader of that table queues up behind it.
            session.execute(_LIMIT_LOCK_WAIT, {"timeout": f"{round(self._lock_timeout_s * 1000)}ms"})
            # The table first: the file may change the search path.
            session.execute(settle, ledger_fields(migration))
            session.execute(script.encode())

    def _failure(self, exc: psycopg.Error, migration: Migration, script: str) -> GatekeeperError:
        cause = _words_of(exc)
        if isinstance(exc, LockNotAvailable):
            cause = f"another session kept a table locked for {self._lock_timeout_s:g} s"
        left = "nothing of it was applied" if migration.transactional else "what it did so far is kept"
        # Locks, deadlocks, a full disk: the same file may succeed later.
        kind = Unavailable if isinstance(exc, psycopg.OperationalError) else FailedPrecondition
        return kind(
            f"migration {migration.label} failed{_line_of(exc, script)}: {cause}; {left}; mend this and try again"
        )


def _run_repeatable(session: Session, migration: Migration, script: str, settle: LiteralString) -> None:
    """Run a no-transaction file. Interrupted anywhere, its row says 'started', and the next run begins from the top.

    No lock_timeout here: concurrent builds wait for old transactions and block nobody meanwhile.
    """
    session.execute(RECORD_STARTED, ledger_fields(migration))
    if migration.concurrent_index is not None:
        _drop_if_invalid(session, migration.concurrent_index)
    # The extended protocol, which binary=True asks for, takes exactly one statement; several would be one implicit
    # transaction.
    session.execute(script.encode(), binary=True)
    session.execute(settle, ledger_fields(migration))


def _drop_if_invalid(session: Session, index: ConcurrentIndex) -> None:
    """Drop what an interrupted build left: IF NOT EXISTS would take the invalid index for the finished one."""
    drop = (
        session.cursor(row_factory=scalar_row)
        .execute(_DROP_INVALID_INDEX, {"table": index.table, "name": index.name})
        .fetchone()
    )
    if drop is not None:
        session.execute(str(drop).encode())
        _log.warning("invalid_index_dropped", index=index.name, table=index.table)


def _existing_version(version: int, migrations: Sequence[Migration]) -> int:
    if not 0 <= version <= len(migrations):
        raise InvalidArgument.of("to", f"must be 0 to {len(migrations)}, the newest migration")
    return version


def _check_way_back(steps: int | None, to: int | None, migrations: Sequence[Migration]) -> None:
    if (steps is None) == (to is None):
        raise InvalidArgument("going down needs exactly one target: how many steps, or the version to go back to")
    if steps is not None and steps < 1:
        raise InvalidArgument.of("steps", "must be 1 or more")
    if to is not None:
        _existing_version(to, migrations)


def _host_of(dsn: str) -> str:
    try:
        fields = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise _unreadable_dsn() from None  # libpq quotes the DSN.
    host, port = str(fields.get("host", "the local socket")), str(fields.get("port", "5432"))
    # A password with a bare @ or / in a URL ends up here in part, and would be shown in every message.
    if "@" in host or not port.replace(",", "").isdigit():
        raise _unreadable_dsn()
    return host


def _unreadable_dsn() -> InvalidArgument:
    return InvalidArgument(
        "the database DSN (DATABASE_URL) cannot be read:"
        " percent-encode special characters of its password, such as @ and /"
    )


def _words_of(exc: psycopg.Error) -> str:
    return exc.diag.message_primary or next(iter(str(exc).splitlines()), type(exc).__name__)


def _line_of(exc: psycopg.Error, script: str) -> str:
    position = exc.diag.statement_position
    return f" at line {script.count(chr(10), 0, int(position) - 1) + 1}" if position else ""
