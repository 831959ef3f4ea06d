"""The user index against a dict that does the same, and what a dict does not promise: immutable, 25 bytes an entry."""

from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_grpc.domain import user_index
from gatekeeper_grpc.domain.user_index import UserEntry, UserIndex

Model = dict[tuple[str, int], int]

USERS = ["alice", "bob", "ünï", "a" * 256, "🦉"]
OWNERS = [0, 1, 2, 2**63 - 1]

names = st.tuples(st.sampled_from(USERS), st.sampled_from(OWNERS))
models = st.dictionaries(names, st.integers(0, 255))
edits = st.lists(st.builds(UserEntry, st.sampled_from(USERS), st.sampled_from(OWNERS), st.none() | st.integers(0, 255)))
many = st.builds("user-{}".format, st.integers(0, 30))
crowded_models = st.dictionaries(st.tuples(many, st.sampled_from(OWNERS)), st.integers(0, 255))
crowded_edits = st.lists(st.builds(UserEntry, many, st.sampled_from(OWNERS), st.none() | st.integers(0, 255)))


def entries(model: Model) -> list[UserEntry]:
    return [UserEntry(user_id, owner_id, tag) for (user_id, owner_id), tag in model.items()]


def apply(model: Model, edit: Iterable[UserEntry]) -> Model:
    """The model after an edit."""
    after = dict(model)
    for user_id, owner_id, tag in edit:
        after.pop((user_id, owner_id), None)
        if tag is not None:
            after[user_id, owner_id] = tag
    return after


def contents(index: UserIndex) -> tuple[int, Mapping[int, int], Mapping[str, Mapping[int, int]]]:
    """All that an index says: its length, its entries per owner, its entries of each user."""
    return len(index), {owner: index.count(owner) for owner in OWNERS}, {user: dict(index.find(user)) for user in USERS}


def contents_of_model(model: Model) -> tuple[int, Mapping[int, int], Mapping[str, Mapping[int, int]]]:
    counts = Counter(owner for _, owner in model)
    found = {user: {owner: tag for (name, owner), tag in model.items() if name == user} for user in USERS}
    return len(model), {owner: counts[owner] for owner in OWNERS}, found


@settings(max_examples=100)
@given(built=models, batches=st.lists(edits, max_size=4))
def test_an_index_says_what_a_dict_would_after_any_edits(built: Model, batches: list[list[UserEntry]]) -> None:
    index, model = UserIndex.build(entries(built)), built
    for batch in batches:
        index, model = index.with_entries(batch), apply(model, batch)

    assert contents(index) == contents_of_model(model)


@settings(max_examples=200)
@given(built=crowded_models, batches=st.lists(crowded_edits, max_size=3))
def test_any_edits_of_full_shards_give_the_bytes_of_a_rebuild(built: Model, batches: list[list[UserEntry]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_index, "_shard_of", lambda digest: digest[0] % 2)
        index, model = UserIndex.build(entries(built)), built
        for batch in batches:
            index, model = index.with_entries(batch), apply(model, batch)
        rebuilt = UserIndex.build(entries(model))

    assert (index.shards, index.counts) == (rebuilt.shards, rebuilt.counts)


@settings(max_examples=50)
@given(built=models, batch=edits)
def test_an_edit_leaves_the_index_it_was_made_from_as_it_was(built: Model, batch: list[UserEntry]) -> None:
    index = UserIndex.build(entries(built))

    index.with_entries(batch)

    assert contents(index) == contents_of_model(built)


@pytest.mark.parametrize(
    ("edit", "found", "count"),
    [
        pytest.param([UserEntry("bob", 1, 0)], {1: 1}, 2, id="add another user"),
        pytest.param([UserEntry("alice", 1, 0)], {1: 0}, 1, id="move"),
        pytest.param([UserEntry("alice", 1, None)], {}, 0, id="remove"),
        pytest.param([UserEntry("bob", 1, None)], {1: 1}, 1, id="remove who is not there"),
        pytest.param([UserEntry("alice", 1, 0), UserEntry("alice", 1, None)], {}, 0, id="the last edit of a user wins"),
        pytest.param([UserEntry("alice", 1, None), UserEntry("alice", 1, 0)], {1: 0}, 1, id="and so does an addition"),
        pytest.param([UserEntry("alice", 2, 9)], {1: 1, 2: 9}, 1, id="add for another owner"),
    ],
)
def test_an_edit_changes_what_it_names(edit: list[UserEntry], found: Mapping[int, int], count: int) -> None:
    index = UserIndex.build([UserEntry("alice", 1, 1)]).with_entries(edit)

    assert (index.find("alice"), index.count(1)) == (found, count)


def test_an_empty_index_knows_nobody() -> None:
    assert contents(UserIndex()) == contents_of_model({})


@pytest.fixture(scope="module")
def crowd() -> UserIndex:
    """100,000 users: about two dozen in every shard."""
    return UserIndex.build(UserEntry(f"user-{number}", number % 3, number % 256) for number in range(100_000))


def test_users_who_share_a_shard_are_distinct(crowd: UserIndex) -> None:
    found = [crowd.find(f"user-{number}") for number in range(100_000)]

    assert found == [{number % 3: number % 256} for number in range(100_000)]


def test_users_without_an_entry_are_not_found_among_many(crowd: UserIndex) -> None:
    assert [crowd.find(f"stranger-{number}") for number in range(10_000)] == [{}] * 10_000


def test_an_entry_takes_25_bytes(crowd: UserIndex) -> None:
    assert sum(map(len, crowd._shards)) == 25 * len(crowd)


def test_an_edit_of_one_user_copies_one_shard_and_shares_the_others(crowd: UserIndex) -> None:
    edited = crowd.with_entries([UserEntry("user-1", 7, 1)])

    assert sum(old is not new for old, new in zip(crowd._shards, edited._shards, strict=True)) == 1


def test_building_at_once_and_adding_one_by_one_give_the_same_bytes() -> None:
    some = [UserEntry(f"user-{number}", 1, 1) for number in range(500)]

    assert UserIndex.build(some)._shards == UserIndex().with_entries(reversed(some))._shards


def test_ids_of_users_do_not_stand_in_the_index() -> None:
    index = UserIndex.build([UserEntry("alice@example.org", 1, 1)])

    assert b"alice" not in b"".join(index._shards)
