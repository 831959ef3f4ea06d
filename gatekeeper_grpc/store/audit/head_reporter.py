"""Keeps an eye on the audit log: writes its head to the server's log, and knows whether the role could rewrite it."""

import structlog

from gatekeeper_grpc.domain.audit import AuditHead
from gatekeeper_grpc.domain.errors import GatekeeperError
from gatekeeper_grpc.store.audit.log import AuditStore
from gatekeeper_grpc.store.postgres.privileges import Privileges

_log = structlog.get_logger(__name__)


class AuditHeadReporter:
    """Reports where the audit log stands.

    Shipped elsewhere, as logs are, each line is an anchor outside the database, which a rewritten log cannot match.
    """

    def __init__(self, audit: AuditStore, privileges: Privileges) -> None:
        self._audit = audit
        self._privileges = privileges
        self._reported: AuditHead | None = None
        self.can_rewrite: bool | None = None
        """Whether the serving role could rewrite the audit log; None: not known yet."""

    def run(self) -> None:
        """Look once; call it every minute."""
        self._report_head()
        self.can_rewrite = bool(self._privileges.rewriting_powers())

    def close(self) -> None:
        """Report the head for the last time, when the database still answers."""
        try:
            self._report_head()
        except GatekeeperError as exc:
            _log.warning("audit_head_unknown", reason=exc.reason, error=str(exc))

    def _report_head(self) -> None:
        head = self._audit.head()
        if head != self._reported:
            _log.info("audit_head", seq=head.anchor.seq, hash=head.anchor.hash.hex(), revision=head.revision)
            self._reported = head
