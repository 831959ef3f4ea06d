"""The revision: the number of one state of the whole installation. Never issued twice."""

from typing import Final

# A restore, or a failover that lost commits, moves the head to the next multiple of this.
REVISIONS_PER_EPOCH: Final = 1_000_000_000


def epoch_of(revision: int) -> int:
    """Return the epoch of a revision.

    Revisions of different epochs have no common history: no delta leads from one to the other.
    """
    return revision // REVISIONS_PER_EPOCH
