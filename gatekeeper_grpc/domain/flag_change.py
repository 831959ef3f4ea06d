"""Which flags changed at which revision, for watchers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gatekeeper_grpc.domain.mutation import ChangeType


class FlagChange(NamedTuple):
    """A flag was created or deleted at a revision, or its results may differ from there on.

    A tuple, because a history has tens of thousands of them.
    """

    revision: int
    flag_key: str
    type: ChangeType


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagChanges:
    """All flag changes after revision `since` up to that of their snapshot, in the order of revisions."""

    since: int
    changes: Sequence[FlagChange] = ()

    def followed_by(self, later: "FlagChanges") -> "FlagChanges":
        """Return these changes and the `later` ones, which start where these end."""
        return FlagChanges(since=self.since, changes=(*self.changes, *later.changes))


def coalesced(changes: Iterable[FlagChange]) -> dict[str, ChangeType]:
    """Return the net change of each flag, from changes in order.

    A client that keeps a set of flag keys, adds created and updated ones and removes deleted ones, ends with the same
    set as with the single changes. A flag that was created and deleted counts as deleted: the client may have seen it
    in a response of another instance.
    """
    total: dict[str, ChangeType] = {}
    for _, flag_key, change in changes:
        total[flag_key] = _together(total.get(flag_key), change)
    return total


def without_covered(changes: Sequence[FlagChange]) -> list[FlagChange]:
    """Return changes without the updates that a later change of the same flag covers.

    From any revision on, the net change of each flag stays the same. The result has at most one update of each flag,
    and every creation and deletion.
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
