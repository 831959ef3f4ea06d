"""Audit head reporter: reports the head of the audit log, and checks whether the serving role could rewrite it."""

from collections.abc import Callable

import structlog

from gatekeeper_grpc.domain.audit import AuditHead
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.store.postgres.privileges import rewriting_powers

_log = structlog.get_logger(__name__)


class AuditHeadReporter:
    """Logs the head of the audit log when it has moved.

    Logs are shipped to another machine, so each line is an anchor outside the database, which a rewritten audit log
    cannot match.

    Args:
        audit: Reads the head.
        database: Where the log is.
        keep: Keeps the head in another place as well.
    """

    def __init__(
        self, audit: AuditStore, database: Database, *, keep: Callable[[AuditHead], object] = lambda _: None
    ) -> None:
        self._audit = audit
        self._database = database
        self._keep = keep
        self._reported: AuditHead | None = None
        self._kept: AuditHead | None = None
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
        if head != self._kept:
            self._keep(head)
            self._kept = head
