"""Database maintenance: creates partitions of the audit log ahead of time, and deletes old rows."""

from dataclasses import dataclass

from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.postgres.database import Database, one
from gatekeeper_grpc.store.postgres.retries import retry_conflicts
from gatekeeper_grpc.store.stored_results import forget_oldest_of_all
from gatekeeper_grpc.store.usage import UsageStore

# By `statement_timestamp`: for a comparison with `clock_timestamp`, which rises while it runs, no index is used.
_PRUNE_CHANGE_LOG = """
    DELETE FROM change_log WHERE create_time < statement_timestamp() - interval '1 hour'
"""

_PRUNE_RESULTS = """
    DELETE FROM idempotency_keys WHERE create_time < statement_timestamp() - interval '24 hours'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintained:
    """The result of one run: partitions created, rows deleted, and of usage also those that were added up."""

    audit_partitions: int
    changes: int
    answers: int
    auth_events: int
    refresh_tokens: int
    usage: int


class Maintenance:
    """Maintains the database; every instance may run it at any time."""

    def __init__(self, database: Database, logins: LoginStore, usage: UsageStore) -> None:
        self._database = database
        self._logins = logins
        self._usage = usage

    @retry_conflicts
    def run(self) -> Maintained:
        """Run once; call it every few minutes.

        Raises:
            Unavailable: The database cannot be reached.
        """
        with self._database.write() as conn:
            (partitions,) = one(conn.execute("SELECT ensure_audit_partitions()"))
            changes = conn.execute(_PRUNE_CHANGE_LOG).rowcount
            answers = conn.execute(_PRUNE_RESULTS).rowcount + forget_oldest_of_all(conn)
        pruned = self._logins.prune()
        return Maintained(
            audit_partitions=partitions,
            changes=changes,
            answers=answers,
            auth_events=pruned.events,
            refresh_tokens=pruned.refresh_tokens,
            usage=self._usage.prune(),
        )
