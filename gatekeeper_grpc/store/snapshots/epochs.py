"""Epochs: after a restore, or a failover that lost commits, no revision is issued twice."""

import structlog

from gatekeeper_grpc.domain.mutation import Intent, Written
from gatekeeper_grpc.store.mutations import MutationRunner

_log = structlog.get_logger(__name__)


class Epochs:
    """Moves a database that has lost commits into a new epoch."""

    def __init__(self, mutations: MutationRunner) -> None:
        self._mutations = mutations

    def start_after_restore(self, *, known_revision: int = 0) -> Written[bool]:
        """Start a new epoch after a restore, on an operator's command.

        Args:
            known_revision: A revision that the operator knows of; the new epoch is later than its epoch. A backup may
                be older than the current epoch.

        Raises:
            Unavailable: The database cannot be reached.
        """
        intent = Intent(caller=None, action="RestoreFinish")
        return _logged(self._mutations.begin_epoch(intent, known_revision=known_revision, only_if_lost=False))

    def start_if_lost(self, known_revision: int, known_hash: bytes = b"") -> Written[bool]:
        """Start a new epoch if the database has lost a revision that an instance has served.

        Args:
            known_revision: The revision.
            known_hash: The hash of its audit entry, which tells it from another revision of the same number; empty if
                unknown.

        Raises:
            Unavailable: The database cannot be reached.
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
