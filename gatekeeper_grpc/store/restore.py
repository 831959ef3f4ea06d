"""After a restore, or a failover that lost commits: makes sure that no revision is ever issued twice."""

import structlog

from gatekeeper_grpc.domain.mutation import Intent, Written
from gatekeeper_grpc.store.database import Database, current_revision
from gatekeeper_grpc.store.ledger import Ledger

_log = structlog.get_logger(__name__)


class Restore:
    """Moves a database that was set back into a new epoch."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger

    def finish(self) -> Written[bool]:
        """Begin a new epoch, on an operator's word that the database was restored."""
        with self._database.read() as conn:
            known_revision = current_revision(conn)
        return self._begin_epoch(known_revision, Intent(caller=None, action="RestoreFinish"))

    def report_loss(self, known_revision: int) -> Written[bool]:
        """Begin a new epoch, on the proof of an instance that has served `known_revision`, which the database lost."""
        reason = "an instance has served a revision that the database does not have"
        return self._begin_epoch(known_revision, Intent(caller=None, action="ReportLoss", change_reason=reason))

    def _begin_epoch(self, known_revision: int, intent: Intent) -> Written[bool]:
        written = self._ledger.begin_epoch(known_revision, intent)
        if written.result:
            _log.warning("epoch_begun", known_revision=known_revision, revision=written.revision, why=intent.action)
        return written
