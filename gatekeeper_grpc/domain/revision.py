"""The revision: the number of one state of the whole installation. Never issued twice."""

import re
from typing import Final

# A restore, or a failover that lost commits, moves the head to the next multiple of this.
REVISIONS_PER_EPOCH: Final = 1_000_000_000

_DECIMAL = re.compile(r"[0-9]{1,19}")
_LARGEST = 2**63 - 1


def epoch_of(revision: int) -> int:
    """Return the epoch of a revision.

    Revisions of different epochs have no common history: no delta leads from one to the other.
    """
    return revision // REVISIONS_PER_EPOCH


def announced_revision(text: str) -> int | None:
    """Return the revision that an announcement names; None if it names none.

    Anyone who may connect can announce anything: only decimal digits of ASCII, at most 2**63 - 1, are a revision.
    """
    revision = int(text) if _DECIMAL.fullmatch(text) else -1
    return revision if 0 <= revision <= _LARGEST else None
