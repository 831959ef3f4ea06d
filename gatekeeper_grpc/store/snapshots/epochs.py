"""After a restore, or a failover that lost commits: makes sure that no revision is ever issued twice."""

import structlog

from gatekeeper_grpc.domain.mutation import Intent, Written
from gatekeeper_grpc.store.mutations import MutationRunner

_log = structlog.get_logger(__name__)


class Epochs:
    """Moves a database that was set back into a new epoch."""

    def __init__(self, mutations: MutationRunner) -> None:
        self._mutations = mutations

    def finish(self, *, known_revision: int = 0) -> Written[bool]:
        """Begin a new epoch, on an operator's word that the database was restored.

        It is a later one than that of `known_revision`, a revision that the operator knows of: a backup from before the
        last epoch began knows nothing of that one.
        """
        intent = Intent(caller=None, action="RestoreFinish")
        return _logged(self._mutations.begin_epoch(intent, known_revision=known_revision, only_if_lost=False))

    def report_loss(self, known_revision: int, known_hash: bytes = b"") -> Written[bool]:
        """Begin a new epoch if the database lost `known_revision`, which an instance has served.

        `known_hash` is of the audit entry that made it, so that another revision of the same number is not taken for
        it; empty when it is not known.
        """
        intent = Intent(
            caller=None, action="ReportLoss", change_reason="an instance has served a revision that is lost"
        )
        return _logged(
            self._mutations.begin_epoch(intent, known_revision=known_revision, known_hash=known_hash, only_if_lost=True)
        )


def _logged(written: Written[bool]) -> Written[bool]:
    if written.result:
        _log.warning("epoch_begun", revision=written.revision)
    return written
