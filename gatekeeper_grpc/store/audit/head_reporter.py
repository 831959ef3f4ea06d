"""Audit head reporter: logs the head of the audit log, and checks whether the serving role could rewrite it."""

import structlog

from gatekeeper_grpc.domain.audit import AuditHead
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.privileges import rewriting_powers

_log = structlog.get_logger(__name__)


class AuditHeadReporter:
    """Logs the head of the audit log.

    Logs are shipped to another machine, so each line is an anchor outside the database, which a rewritten audit log
    cannot match.
    """

    def __init__(self, audit: AuditStore, database: Database) -> None:
        self._audit = audit
        self._database = database
        self._reported: AuditHead | None = None
        self.can_rewrite: bool | None = None
        """Whether the serving role could rewrite the audit log; None until the first run."""

    def run(self) -> None:
        """Check once; call it every minute.

        Raises:
            Unavailable: The database cannot be reached.
        """
        self._report_head()
        self.can_rewrite = bool(rewriting_powers(self._database))

    def close(self) -> None:
        """Log the head a last time; a database that does not answer is logged instead."""
        try:
            self._report_head()
        except GatekeeperError as exc:
            _log.warning("audit_head_unknown", reason=exc.reason, error=str(exc))

    def _report_head(self) -> None:
        head = self._audit.head()
        if head != self._reported:
            _log.info("audit_head", seq=head.anchor.seq, hash=head.anchor.hash.hex(), revision=head.revision)
            self._reported = head
