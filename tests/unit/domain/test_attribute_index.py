"""The attribute index against a dict that does the same, and what it alone promises: immutable, shared, compact."""

import json
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.attribute_index import AttributeEntry, AttributeIndex, UserAttributes
from gatekeeper_grpc.domain.user_index import user_digest

Model = dict[tuple[str, str], str]

USERS = ["alice", "bob", "ünï", "a" * 256, "🦉"]
NAMES = ["plan", "", "é\n"]

names = st.tuples(st.sampled_from(USERS), st.sampled_from(NAMES))
texts = st.sampled_from(['"gold"', "1", "0", '""', "false", '{"a": [1]}', '"' + "x" * 300 + '"'])
models = st.dictionaries(names, texts)
edits = st.lists(st.builds(AttributeEntry, st.sampled_from(USERS), st.sampled_from(NAMES), st.none() | texts))


def entries(model: Model) -> list[AttributeEntry]:
    return [AttributeEntry(user_id, name, value) for (user_id, name), value in model.items()]


def index(model: Model) -> AttributeIndex:
    return AttributeIndex.build(NAMES, entries(model))


def apply(model: Model, edit: Iterable[AttributeEntry]) -> Model:
    """The model after an edit."""
    after = dict(model)
    for user_id, name, value in edit:
        after.pop((user_id, name), None)
        if value is not None:
            after[user_id, name] = value
    return after


def found(index: AttributeIndex) -> tuple[int, dict[tuple[str, str], JsonValue]]:
    """All that an index says: its length, and what each user has."""
    values = {(user, name): index.find(user_digest(user), name) for user in USERS for name in NAMES}
    return len(index), {key: value for key, value in values.items() if value is not None}


def said(model: Model) -> tuple[int, dict[tuple[str, str], JsonValue]]:
    return len(model), {key: json.loads(value) for key, value in model.items()}


@settings(max_examples=150)
@given(built=models, batches=st.lists(edits, max_size=4))
def test_an_index_says_what_a_dict_would_after_any_edits(built: Model, batches: list[list[AttributeEntry]]) -> None:
    edited, model = index(built), built
    for batch in batches:
        edited, model = edited.with_entries(batch), apply(model, batch)

    assert found(edited) == said(model)


@settings(max_examples=50)
@given(built=models, batch=edits)
def test_an_edit_leaves_the_index_it_was_made_from_as_it_was(built: Model, batch: list[AttributeEntry]) -> None:
    before = index(built)

    before.with_entries(batch)

    assert found(before) == said(built)


ALICE = {("alice", "plan"): '"gold"', ("alice", ""): "1"}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        pytest.param([("bob", "plan", '"gold"')], {**ALICE, ("bob", "plan"): '"gold"'}, id="another user"),
        pytest.param([("alice", "plan", "2")], {**ALICE, ("alice", "plan"): "2"}, id="another value"),
        pytest.param([("alice", "plan", None)], {("alice", ""): "1"}, id="no value any more"),
        pytest.param([("bob", "plan", None)], ALICE, id="no value before either"),
        pytest.param(
            [("alice", "plan", None), ("alice", "plan", "3")], {**ALICE, ("alice", "plan"): "3"}, id="last wins"
        ),
        pytest.param([("alice", "other", "1")], ALICE, id="an attribute that is not held"),
    ],
)
def test_an_edit_changes_what_it_names(edit: list[tuple[str, str, str | None]], expected: Model) -> None:
    edited = index(ALICE).with_entries(AttributeEntry(*entry) for entry in edit)

    assert found(edited) == said(expected)


def test_an_index_holds_what_it_was_built_for_and_nothing_else() -> None:
    built = AttributeIndex.build(["plan"], entries(ALICE))

    assert (set(built.names), found(built)) == ({"plan"}, said({("alice", "plan"): '"gold"'}))


def test_joining_adds_attributes_and_restricting_drops_them() -> None:
    plan, country = AttributeIndex.build(["plan"], entries(ALICE)), AttributeIndex.build(["country"], [])

    joined = plan.joined_with(country)

    assert joined.names == {"plan", "country"}
    assert joined.restricted_to(frozenset({"country", "other"})).names == {"country"}
    assert len(joined.restricted_to(frozenset({"country"}))) == 0


def test_what_changes_nothing_returns_the_same_index() -> None:
    before = index(ALICE)

    assert before.restricted_to(frozenset(NAMES)) is before
    assert before.joined_with(AttributeIndex()) is before
    assert before.with_entries([AttributeEntry("alice", "other", "1")]) is before


@pytest.fixture(scope="module")
def crowd() -> AttributeIndex:
    """50,000 users: about fifty in every shard."""
    return AttributeIndex.build(
        ["plan"], (AttributeEntry(f"user-{number}", "plan", f'"{number}"') for number in range(50_000))
    )


def test_users_who_share_a_shard_are_distinct(crowd: AttributeIndex) -> None:
    values = [crowd.find(user_digest(f"user-{number}"), "plan") for number in range(50_000)]

    assert values == [str(number) for number in range(50_000)]


def test_users_who_have_nothing_are_not_found_among_many(crowd: AttributeIndex) -> None:
    assert {crowd.find(user_digest(f"stranger-{number}"), "plan") for number in range(5_000)} == {None}


def test_a_value_takes_its_text_and_20_bytes(crowd: AttributeIndex) -> None:
    texts = sum(len(f'"{number}"') for number in range(50_000))

    assert sum(map(len, crowd.shards["plan"].values())) == texts + 20 * len(crowd) + 8 * 1024


def test_an_edit_of_one_user_copies_one_shard_and_shares_the_others(crowd: AttributeIndex) -> None:
    edited = crowd.with_entries([AttributeEntry("user-1", "plan", "1")])
    before, after = crowd.shards["plan"], edited.shards["plan"]

    assert sum(before[number] is not after[number] for number in before) == 1


def test_an_edit_that_changes_nothing_shares_all(crowd: AttributeIndex) -> None:
    edited = crowd.with_entries([AttributeEntry("user-1", "plan", '"1"'), AttributeEntry("stranger", "plan", None)])

    assert edited._columns["plan"] is crowd._columns["plan"]


def test_building_at_once_and_adding_one_by_one_give_the_same_bytes() -> None:
    some = [AttributeEntry(f"user-{number}", "plan", "1") for number in range(500)]

    built, edited = AttributeIndex.build(["plan"], some), AttributeIndex.build(["plan"], []).with_entries(some[::-1])

    assert dict(built.shards["plan"]) == edited.shards["plan"]


def test_ids_of_users_do_not_stand_in_the_index() -> None:
    built = AttributeIndex.build(["plan"], [AttributeEntry("alice@example.org", "plan", "1")])

    assert b"alice" not in b"".join(built.shards["plan"].values())


@pytest.mark.parametrize(
    ("sent", "stored", "seen"),
    [
        pytest.param({}, None, None, id="neither"),
        pytest.param({}, '"stored"', "stored", id="stored only"),
        pytest.param({"plan": "sent"}, None, "sent", id="sent only"),
        pytest.param({"plan": "sent"}, '"stored"', "sent", id="sent wins"),
        pytest.param({"plan": None}, '"stored"', None, id="a sent null hides the stored one"),
        pytest.param({"plan": False}, "true", False, id="a sent false is not nothing"),
        pytest.param({"plan": ""}, '"stored"', "", id="sent empty text is not nothing"),
        pytest.param({"plan": {}}, '{"tier": 1}', {}, id="objects are not merged: top-level names decide"),
        pytest.param({"Plan": "sent"}, '"stored"', "stored", id="names are case-sensitive"),
        pytest.param({}, "0", 0, id="a stored zero is not nothing"),
    ],
)
def test_conditions_see_sent_over_stored_over_nothing(
    sent: Mapping[str, JsonValue], stored: str | None, seen: JsonValue
) -> None:
    held = AttributeIndex.build(["plan"], [AttributeEntry("alice", "plan", stored)])
    attributes = UserAttributes("alice", sent, held)

    assert [attributes.get("plan"), attributes.get("plan")] == [seen, seen]


def test_a_stored_attribute_is_looked_up_once() -> None:
    looked_up: list[str] = []

    class Counting(AttributeIndex):
        def find(self, digest: bytes, name: str) -> JsonValue:
            looked_up.append(name)
            return super().find(digest, name)

    attributes = UserAttributes("alice", {"sent": 1}, Counting())

    assert [attributes.get(name) for name in ("plan", "plan", "sent")] == [None, None, 1]
    assert looked_up == ["plan"]
