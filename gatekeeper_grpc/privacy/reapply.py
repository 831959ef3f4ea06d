"""After a restore: erases again the people who were erased since the backup was made."""

from dataclasses import dataclass
from datetime import datetime

from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.privacy.erasure_ledger import ErasureLedger
from gatekeeper_grpc.store.erasure import ErasureStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Reapplied:
    """How many people were erased again, and why others were not."""

    erased: int
    refusals: tuple[str, ...]


class AlreadyRecorded:
    """Records nothing: with a new time in the ledger, the next restore would erase people who have returned since."""

    def record(self, user_id: str, time: datetime) -> None:
        """Record nothing."""


def reapply_erasures(erasures: ErasureStore, ledger: ErasureLedger) -> Reapplied:
    """Erase every person whom the database has known since before their erasure in the ledger.

    People who returned after their erasure stay. Who is known by an older key is named with the newest one as well. It
    may be interrupted and run again.
    """
    erased_at = ledger.erasures()
    returned = [
        user_id
        for user_id, known_since in erasures.known_since()
        if any(known_since < erased_at[name] for name in ledger.names(user_id) if name in erased_at)
    ]
    ledger.rename(returned)
    refusals = [refusal for user_id in returned if (refusal := _erase_again(erasures, user_id))]
    return Reapplied(erased=len(returned) - len(refusals), refusals=tuple(refusals))


def _erase_again(erasures: ErasureStore, user_id: str) -> str:
    """Erase one person; returns why it was refused, or an empty string."""
    try:
        erasures.erase(user_id, Intent(caller=None, action="ReapplyErasure"))
    except FailedPrecondition as exc:
        return str(exc)
    return ""
