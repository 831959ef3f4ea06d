"""What changes of a flag come to, and which flags a change of something else touches."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper_grpc.domain.change_log import LoggedChange, flag_changes
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.flag_change import FlagChange, coalesced, without_covered
from gatekeeper_grpc.domain.mutation import ChangeType, ResourceType
from gatekeeper_grpc.domain.snapshot import Snapshot
from tests.support.flags import flag, on_for
from tests.support.segments import segment

C, U, D = ChangeType.CREATED, ChangeType.UPDATED, ChangeType.DELETED


@pytest.mark.parametrize(
    ("changes", "total"),
    [
        pytest.param([C], C, id="created"),
        pytest.param([U], U, id="updated"),
        pytest.param([D], D, id="deleted"),
        pytest.param([C, U], C, id="created and updated"),
        pytest.param([C, D], D, id="created and deleted"),
        pytest.param([U, U], U, id="updated twice"),
        pytest.param([U, D], D, id="updated and deleted"),
        pytest.param([D, C], U, id="deleted and created"),
        pytest.param([D, C, U], U, id="deleted, created and updated"),
        pytest.param([D, C, D], D, id="deleted, created and deleted"),
        pytest.param([C, D, C], U, id="created, deleted and created"),
        # A segment that a new flag segment_targets at changed first: the flag is told of with both.
        pytest.param([U, C], C, id="updated and created"),
    ],
)
def test_changes_of_one_flag_come_to_one(changes: list[ChangeType], total: ChangeType) -> None:
    assert coalesced(FlagChange(nth, "a", change) for nth, change in enumerate(changes)) == {"a": total}


def test_each_flag_has_its_own_net_change() -> None:
    changes = [FlagChange(1, "a", C), FlagChange(2, "b", U), FlagChange(3, "a", D)]

    assert coalesced(changes) == {"a": D, "b": U}


def applied(keys: set[str], changes: dict[str, ChangeType]) -> set[str]:
    """Do with a set of flag keys what a watcher does."""
    gone = {key for key, change in changes.items() if change is D}
    return (keys | changes.keys()) - gone


steps = st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=30)


@given(steps=steps, cuts=st.sets(st.integers(0, 30)))
def test_a_set_of_flags_kept_by_coalesced_changes_is_the_set_of_flags(
    steps: list[tuple[str, bool]], cuts: set[int]
) -> None:
    flags: set[str] = set()
    seen: set[str] = set()
    untold: list[FlagChange] = []
    for revision, (key, removes) in enumerate(steps):
        change = D if removes and key in flags else U if key in flags else C
        flags = applied(flags, {key: change})
        untold.append(FlagChange(revision, key, change))
        if revision in cuts:
            seen, untold = applied(seen, coalesced(untold)), []

    assert applied(seen, coalesced(untold)) == flags


def test_an_update_is_covered_by_whatever_comes_later() -> None:
    changes = [FlagChange(1, "a", C), FlagChange(2, "a", U), FlagChange(2, "b", U), FlagChange(3, "a", U)]
    gone = FlagChange(4, "b", D)

    assert without_covered([*changes, gone]) == [changes[0], changes[3], gone]


@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([C, U, D])), max_size=20))
def test_dropping_covered_updates_keeps_the_net_change_from_any_revision(
    steps: list[tuple[str, ChangeType]],
) -> None:
    flags: set[str] = set()
    changes: list[FlagChange] = []
    for revision, (key, wanted) in enumerate(steps):
        change = C if key not in flags else U if wanted is C else wanted
        flags = applied(flags, {key: change})
        changes.append(FlagChange(revision, key, change))
    left = without_covered(changes)

    for since in range(len(changes)):
        later, later_left = ([each for each in known if each.revision > since] for known in (changes, left))
        assert coalesced(later) == coalesced(later_left)


# --- What touches which flags ----------------------------------------------------------------------------------------


def wanting(*attributes: str) -> tuple[Condition, ...]:
    return tuple(Condition(attribute=name, operator=Operator.EXISTS) for name in attributes)


SNAPSHOT = Snapshot.build(
    revision=9,
    flags=[
        flag("plain", flag_id=1),
        flag("gold-only", flag_id=2, segment_targets=on_for("gold")),
        flag("both", flag_id=3, segment_targets=on_for("gold", "staff")),
    ],
    segments=[segment("gold", *wanting("plan", "/org/size"), segment_id=1), segment("staff", segment_id=2)],
)
SUBJECT = UUID(int=1)


def touched(resource: ResourceType, key: str, change: ChangeType = U, *, attributes: tuple[str, ...] = ()) -> object:
    """Return what one change in the log changes, by flag key; of a user, these attributes changed."""
    log = [LoggedChange(revision=7, resource_type=resource, change_type=change, key=key)]
    changes = flag_changes(log, SNAPSHOT, lambda _change: attributes)
    assert {change.revision for change in changes} <= {7}
    return sorted((change.flag_key, change.type) for change in changes)


@pytest.mark.parametrize("change", ChangeType)
def test_a_flag_changes_with_itself(change: ChangeType) -> None:
    assert touched(ResourceType.FLAG, "any", change) == [("any", change)]


def test_a_flag_is_updated_by_its_targets() -> None:
    assert touched(ResourceType.TARGETS, "plain") == [("plain", U)]


@pytest.mark.parametrize("resource", [ResourceType.SEGMENT, ResourceType.MEMBERS])
@pytest.mark.parametrize("change", ChangeType)
def test_a_segment_and_its_members_update_the_flags_that_target_it(resource: ResourceType, change: ChangeType) -> None:
    assert touched(resource, "gold", change) == [("both", U), ("gold-only", U)]
    assert touched(resource, "staff", change) == [("both", U)]
    assert touched(resource, "nobody's", change) == []


@pytest.mark.parametrize(
    ("attributes", "flags"),
    [
        pytest.param(("plan",), [("both", U), ("gold-only", U)], id="named"),
        pytest.param(("org",), [("both", U), ("gold-only", U)], id="named by a path into it"),
        pytest.param(("plan", "org"), [("both", U), ("gold-only", U)], id="two of one segment: each flag once"),
        pytest.param(("mail",), [], id="named by no segment"),
        pytest.param((), [], id="none"),
    ],
)
def test_flags_are_updated_by_stored_attributes_that_their_segments_name(
    attributes: tuple[str, ...], flags: list[tuple[str, ChangeType]]
) -> None:
    assert touched(ResourceType.USER, str(SUBJECT), attributes=attributes) == flags


@pytest.mark.parametrize("resource", [ResourceType.ADMIN_USER, ResourceType.CLIENT_KEY])
def test_no_flag_is_touched_by_admin_users_and_client_keys(resource: ResourceType) -> None:
    assert touched(resource, "gold") == []


def test_a_segment_touched_many_times_updates_each_flag_once() -> None:
    log = [
        LoggedChange(revision=revision, resource_type=ResourceType.MEMBERS, change_type=U, key="gold")
        for revision in range(1, 1_000)
    ]

    assert flag_changes(log, SNAPSHOT, lambda _change: ()) == [
        FlagChange(999, "gold-only", U),
        FlagChange(999, "both", U),
    ]
