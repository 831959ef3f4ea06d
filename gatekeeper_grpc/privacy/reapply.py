"""After a backup was restored: erases again who had been erased since the backup was made."""

from dataclasses import dataclass
from datetime import datetime

from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.privacy.erasure_ledger import ErasureLedger
from gatekeeper_grpc.store.erasure import ErasureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Reapplied:
    """How many people were erased again, and what kept others from it."""

    erased: int
    refusals: tuple[str, ...]


class AlreadyRecorded:
    """What erasing again tells the ledger: nothing. A new time there would undo, at a next restore, who came back."""

    def record(self, user_id: str, time: datetime) -> None:
        """Leave the ledger as it is."""


def reapply_erasures(erasures: ErasureStore, ledger: ErasureLedger) -> Reapplied:
    """Erase everybody whom the ledger names and the database has known since before that.

    Who came back after being erased stays. May be interrupted and run again.
    """
    erased_at = ledger.erasures()
    returned = [
        user_id
        for user_id, known_since in erasures.known_since()
        if (erased := erased_at.get(ledger.mac(user_id))) and known_since < erased
    ]
    refusals = [refusal for user_id in returned if (refusal := _erase_again(erasures, user_id))]
    return Reapplied(erased=len(returned) - len(refusals), refusals=tuple(refusals))


def _erase_again(erasures: ErasureStore, user_id: str) -> str:
    """Erase one person; returns why not, or nothing."""
    try:
        erasures.erase(user_id, Intent(caller=None, action="ReapplyErasure"))
    except FailedPrecondition as exc:
        return str(exc)
    return ""
