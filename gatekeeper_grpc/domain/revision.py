"""The revision: the number of a state of everything. Never issued twice."""

from typing import Final

# A restore, or a failover that lost commits, moves the head to the next multiple of this.
REVISIONS_PER_EPOCH: Final = 1_000_000_000


def epoch_of(revision: int) -> int:
    """Return the epoch of a revision.

    Revisions of different epochs have no history in common: no delta leads across.
    """
    return revision // REVISIONS_PER_EPOCH
