"""Which flags changed at which revision: what watchers are told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gatekeeper_grpc.domain.mutation import ChangeType


class FlagChange(NamedTuple):
    """Says that a flag may give other answers from a revision on, or that it came or went.

    A tuple, because a history is made of tens of thousands.
    """

    revision: int
    flag_key: str
    type: ChangeType


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagChanges:
    """All flag changes after revision `since`, in the order of revisions, up to that of the snapshot they belong to."""

    since: int
    changes: Sequence[FlagChange] = ()

    def followed_by(self, later: "FlagChanges") -> "FlagChanges":
        """Return these and the `later` ones, which begin where these end."""
        return FlagChanges(since=self.since, changes=(*self.changes, *later.changes))


def coalesced(changes: Iterable[FlagChange]) -> dict[str, ChangeType]:
    """Return what changes, in order, come to for each flag.

    Whoever keeps a set of flag keys, adds what was created or updated and removes what was deleted, ends with the same
    set as by the single changes. A flag that was created and deleted counts as deleted: it may have been seen
    meanwhile, by an answer of another instance.
    """
    total: dict[str, ChangeType] = {}
    for _, flag_key, change in changes:
        total[flag_key] = _together(total.get(flag_key), change)
    return total


def without_covered(changes: Sequence[FlagChange]) -> list[FlagChange]:
    """Return changes without those updates that a later change of the same flag covers.

    From whatever revision on, what is left comes to the same, and is no longer than there are flags that changed and
    comings and goings.
    """
    later: set[str] = set()
    left: list[FlagChange] = []
    for change in reversed(changes):
        if change.type is not ChangeType.UPDATED or change.flag_key not in later:
            left.append(change)
            later.add(change.flag_key)
    left.reverse()
    return left


def _together(earlier: ChangeType | None, later: ChangeType) -> ChangeType:
    if earlier is ChangeType.DELETED and later is not ChangeType.DELETED:
        return ChangeType.UPDATED
    if earlier is ChangeType.CREATED and later is ChangeType.UPDATED:
        return ChangeType.CREATED
    return later
