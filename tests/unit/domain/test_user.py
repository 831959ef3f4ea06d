"""The user: what may be stored of one, and its document, which does not name its id."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import rfc8785

from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.commands import UserUpdate
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.user import User, UserProfile, user_document

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)
ALICE = User(
    subject_id=UUID(int=7),
    profile=UserProfile(
        user_id="alice@example.org", attributes={"plan": "gold", "big": 1e300, "n": [1.0, {"x": None}]}
    ),
    create_time=NOW,
    update_time=NOW + timedelta(seconds=1),
    revision=3,
)


def nested(levels: int) -> JsonValue:
    value: JsonValue = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param({"plan": "g\0ld"}, id="NUL in text"),
        pytest.param({"pl\0an": 1}, id="NUL in a name"),
        pytest.param({"a": {"b\0": 1}}, id="NUL in an inner name"),
        pytest.param({"a": "\ud800"}, id="half a surrogate pair"),
        pytest.param({"\udfff": 1}, id="half a surrogate pair in a name"),
        pytest.param({"a": [float("nan")]}, id="NaN"),
        pytest.param({"a": float("-inf")}, id="infinity"),
        pytest.param({"a": nested(5)}, id="six levels"),
        pytest.param({"a": "x" * 16_384}, id="too large"),
        pytest.param({"a": "\x01" * 3_000}, id="too large only as JSON"),
    ],
)
def test_attributes_that_cannot_be_stored_are_refused_by_field(attributes: Mapping[str, JsonValue]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        UserProfile(user_id="alice", attributes=attributes)

    assert refusal.value.metadata == {"field": "user.attributes"}


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param({}, id="none"),
        pytest.param({"": "", "a.b": 1, 'q"`': None, "é": "🦉"}, id="odd names"),
        pytest.param({"a": nested(4)}, id="five levels"),
        pytest.param({"a": "x" * (16_384 - 8)}, id="16 KiB"),
        pytest.param({"a": [1e300, 5e-324, 2.0**53, -0.0, 0.1]}, id="numbers"),
    ],
)
def test_attributes_are_kept(attributes: dict[str, JsonValue]) -> None:
    assert UserProfile(user_id="alice", attributes=attributes).attributes == attributes


@pytest.mark.parametrize("user_id", ["", "x" * 257, "a\0b"])
def test_a_bad_user_id_is_refused_by_field(user_id: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        UserProfile(user_id=user_id)

    assert refusal.value.metadata == {"field": "user.user_id"}


def test_the_audited_document_does_not_name_the_user() -> None:
    document = rfc8785.dumps(user_document(ALICE))

    assert b"alice" not in document
    assert str(ALICE.subject_id).encode() in document


def test_each_state_of_each_user_has_an_etag_of_its_own() -> None:
    states = [ALICE, replace(ALICE, revision=4), replace(ALICE, subject_id=UUID(int=8))]

    assert len({state.etag for state in states}) == 3


STORED: Mapping[str, JsonValue] = {"plan": "gold", "age": 7, "a.b": 1}


@pytest.mark.parametrize(
    ("sent", "names", "after"),
    [
        pytest.param({"x": 1}, None, {"x": 1}, id="all are replaced"),
        pytest.param({}, None, {}, id="all are removed"),
        pytest.param({"plan": "free"}, {"plan"}, {**STORED, "plan": "free"}, id="one is replaced"),
        pytest.param({}, {"plan"}, {"age": 7, "a.b": 1}, id="one that was not sent is removed"),
        pytest.param({"x": 1}, {"x"}, {**STORED, "x": 1}, id="one is added"),
        pytest.param({"plan": None}, {"plan"}, {**STORED, "plan": None}, id="null is a value"),
        pytest.param({"x": 1, "plan": "free"}, {"x"}, {**STORED, "x": 1}, id="what is not named is not looked at"),
        pytest.param({}, {"gone"}, STORED, id="removing what is not there"),
        pytest.param({"a.b": 2}, {"a.b"}, {**STORED, "a.b": 2}, id="a dot is part of the name"),
    ],
)
def test_an_update_changes_what_it_names(
    sent: Mapping[str, JsonValue], names: set[str] | None, after: Mapping[str, JsonValue]
) -> None:
    update = UserUpdate(user_id="alice", attributes=sent, names=None if names is None else frozenset(names))

    assert update.applied_to(STORED) == after
