"""The change history: a returning watcher gets what it missed, or a reset when that is unknown."""

from collections.abc import Iterable
from uuid import UUID

import pytest

from gatekeeper_grpc.cache.change_history import ChangeHistory, Position
from gatekeeper_grpc.domain.flag_change import FlagChange, FlagChanges
from gatekeeper_grpc.domain.mutation import ChangeType
from gatekeeper_grpc.domain.revision import REVISIONS_PER_EPOCH
from gatekeeper_grpc.domain.snapshot import NO_INSTALLATION, Snapshot

OTHER = UUID(int=1)
C, U, D = ChangeType.CREATED, ChangeType.UPDATED, ChangeType.DELETED


def snapshot(revision: int, *, since: int | None = None, changes: Iterable[FlagChange] = ()) -> Snapshot:
    """A snapshot that knows which flags changed after `since`; None: it knows nothing."""
    told = None if since is None else FlagChanges(since=since, changes=tuple(changes))
    return Snapshot.build(revision=revision, changes=told)


def history(*snapshots: Snapshot, capacity: int = 100) -> ChangeHistory:
    """The history of an instance that served these, one after the other."""
    history = ChangeHistory(capacity=capacity)
    for served in snapshots:
        history.extend(served)
    return history


def missed(history: ChangeHistory, revision: int) -> object:
    return history.since(history.at(revision)).changes


UNKNOWN = None
NOTHING: dict[str, ChangeType] = {}
FIRST = snapshot(5, since=2, changes=[FlagChange(3, "a", C), FlagChange(4, "b", C)])
SECOND = snapshot(7, since=5, changes=[FlagChange(6, "a", U), FlagChange(7, "b", D)])


@pytest.mark.parametrize(
    ("revision", "changes"),
    [
        pytest.param(1, UNKNOWN, id="before all that is known"),
        pytest.param(2, {"a": C, "b": D}, id="from where it begins"),
        pytest.param(3, {"a": U, "b": D}, id="from the middle of a load"),
        pytest.param(5, {"a": U, "b": D}, id="from what was served before"),
        pytest.param(6, {"b": D}, id="from the middle of a delta"),
        pytest.param(7, NOTHING, id="from now"),
    ],
)
def test_who_comes_back_is_told_all_after_the_revision_known(revision: int, changes: object) -> None:
    assert missed(history(FIRST, SECOND), revision) == changes


def test_all_that_was_told_leads_to_the_newest_position() -> None:
    known = history(FIRST, SECOND)

    assert known.since(known.at(3)).position == known.since(known.at(1)).position == known.position == known.at(7)


def test_revisions_that_change_no_flag_are_passed_over() -> None:
    known = history(FIRST, snapshot(9, since=5))

    assert (missed(known, 5), known.position.revision) == (NOTHING, 9)


def test_an_empty_installation_has_a_history_too() -> None:
    assert missed(history(snapshot(0, since=0), snapshot(1, since=0, changes=[FlagChange(1, "a", C)])), 0) == {"a": C}


def test_serving_the_same_revision_again_adds_nothing() -> None:
    again = snapshot(5, since=2, changes=[FlagChange(3, "a", C), FlagChange(4, "b", C)])

    assert missed(history(FIRST, again, snapshot(5), SECOND), 2) == {"a": C, "b": D}


def test_what_overlaps_is_told_once() -> None:
    overlapping = snapshot(6, since=3, changes=[FlagChange(4, "b", C), FlagChange(6, "b", D)])

    assert missed(history(FIRST, overlapping), 4) == {"b": D}
    assert missed(history(FIRST, overlapping), 2) == {"a": C, "b": D}


@pytest.mark.parametrize(
    ("after", "known_since"),
    [
        pytest.param(snapshot(9), 9, id="a source that knows nothing"),
        pytest.param(snapshot(9, since=8, changes=[FlagChange(9, "c", C)]), 8, id="changes that begin too late"),
        pytest.param(snapshot(REVISIONS_PER_EPOCH, since=REVISIONS_PER_EPOCH), REVISIONS_PER_EPOCH, id="an epoch"),
    ],
)
def test_the_history_starts_again_where_changes_do_not_reach_back(after: Snapshot, known_since: int) -> None:
    known = history(FIRST, after)

    assert missed(known, 5) is UNKNOWN
    assert missed(known, known_since - 1) is UNKNOWN
    assert missed(known, known_since) is not UNKNOWN


def test_positions_in_another_installation_are_worth_nothing() -> None:
    known = history(FIRST, SECOND)
    told = known.position
    other = Snapshot.build(revision=9, installation_id=OTHER, changes=FlagChanges(since=5))
    known.extend(other)

    assert known.since(told).changes is UNKNOWN
    assert missed(known, 7) == NOTHING


def test_of_too_many_changes_the_oldest_revisions_are_forgotten_whole() -> None:
    known = ChangeHistory(capacity=10)
    known.extend(snapshot(0, since=0))
    for revision in range(1, 101):
        pair = [FlagChange(revision, f"{revision}-{half}", U) for half in "ab"]
        known.extend(snapshot(revision, since=revision - 1, changes=pair))

    assert len(known._changes) <= 12
    assert missed(known, 100 - 7) is UNKNOWN
    told = missed(known, 100 - 5)
    assert isinstance(told, dict)
    assert set(told) == {f"{revision}-{half}" for revision in range(96, 101) for half in "ab"}


def test_what_later_changes_cover_takes_no_room() -> None:
    known = ChangeHistory(capacity=10)
    known.extend(snapshot(0, since=0))
    for revision in range(1, 101):
        pair = [FlagChange(revision, half, U) for half in "ab"]
        known.extend(snapshot(revision, since=revision - 1, changes=pair))

    assert len(known._changes) <= 12
    assert missed(known, 0) == missed(known, 99) == {"a": U, "b": U}
    assert missed(known, 100) == NOTHING


def test_a_client_ahead_of_the_history_has_missed_nothing() -> None:
    known = history(FIRST)
    ahead = known.at(6)

    assert (known.since(ahead).changes, known.since(ahead).position) == (NOTHING, ahead)
    known.extend(SECOND)
    assert known.since(ahead).changes == {"b": D}


def test_before_anything_is_served_there_is_nothing_to_miss() -> None:
    assert ChangeHistory().position == Position(NO_INSTALLATION, 0)
