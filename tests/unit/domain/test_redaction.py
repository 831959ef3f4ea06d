"""Which parts of a document people wrote: an erasure replaces a person there, and touches nothing else."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_grpc.domain.admin_user import AdminUser, admin_user_document
from gatekeeper_grpc.domain.api_token import ApiToken, ApiTokenConfig, api_token_document
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.client_key import ClientKey, ClientKeyConfig, RateTier, client_key_document
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.erasure import PLACEHOLDER, Mention
from gatekeeper_grpc.domain.flag import Flag, FlagConfig, SegmentTarget, flag_document
from gatekeeper_grpc.domain.mutation import ResourceType
from gatekeeper_grpc.domain.redaction import WRITTEN_BY, Shape, emptied_document, redacted_document
from gatekeeper_grpc.domain.segment import Match, Segment, SegmentConfig, segment_document
from gatekeeper_grpc.domain.user import User, UserProfile, user_document

pytestmark = pytest.mark.promise("F4")

NOW = datetime(2026, 11, 28, 11, 11, 11, tzinfo=UTC)
TIMES: dict[str, Any] = {"create_time": NOW, "update_time": NOW, "revision": 11}


def flag(**texts: Any) -> dict[str, Any]:
    config = FlagConfig(key="beta", segment_targets=(SegmentTarget(segment_key="vip", variant="on"),), **texts)
    return flag_document(Flag(flag_id=11, config=config, **TIMES))


def segment(*values: Any, description: str = "", operator: Operator = Operator.IN) -> dict[str, Any]:
    condition = Condition(attribute="/plan/tier", operator=operator, values=values or ("x",))
    config = SegmentConfig(key="vip", description=description, match=Match.ALL, conditions=(condition,))
    return segment_document(Segment(segment_id=11, config=config, **TIMES))


def user(**attributes: Any) -> dict[str, Any]:
    profile = UserProfile(user_id="somebody", attributes=attributes)
    return user_document(User(subject_id=UUID(int=11), profile=profile, **TIMES))


def changed(before: Any = None, after: Any = None, **more: Any) -> dict[str, Any]:
    return {"before": before, "after": after, "change_reason": "", **more}


STATES: Mapping[ResourceType, dict[str, Any]] = {
    ResourceType.FLAG: flag(description="a", tags=("b",), owner="c"),
    ResourceType.SEGMENT: segment("a"),
    ResourceType.USER: user(plan="a"),
    ResourceType.ADMIN_USER: admin_user_document(
        AdminUser(admin_id=11, username="admin", role=Role.ADMIN, enabled=True, **TIMES)
    ),
    ResourceType.CLIENT_KEY: client_key_document(
        ClientKey(
            key_id="11",
            config=ClientKeyConfig(name="shop", tier=RateTier.STANDARD),
            create_time=NOW,
            revision=11,
        )
    ),
    ResourceType.API_TOKEN: api_token_document(
        ApiToken(
            token_id="11",
            config=ApiTokenConfig(name="shop", role=Role.ADMIN, expire_time=NOW),
            admin_id=11,
            username="admin",
            create_time=NOW,
            revision=11,
        )
    ),
}


def unclassified(shape: Shape, value: Any, at: str = "") -> list[str]:
    """The fields of a document that its shape does not name."""
    if isinstance(value, list):
        return [path for item in value for path in unclassified(shape, item, at)]
    if not isinstance(value, dict) or not isinstance(shape, Mapping):
        return []
    unknown = [f"{at}.{name}" for name in value.keys() - shape.keys()]
    return unknown + [
        path for name in value.keys() & shape.keys() for path in unclassified(shape[name], value[name], f"{at}.{name}")
    ]


@pytest.mark.parametrize("resource", STATES)
def test_every_field_is_said_to_be_of_people_or_of_the_server(resource: ResourceType) -> None:
    """A new field must be classified in `WRITTEN_BY`: is it searched for an erased person?"""
    document = {"before": STATES[resource], "after": STATES[resource]}

    assert unclassified(WRITTEN_BY[resource], document) == []
    assert unclassified(WRITTEN_BY[resource], {"after": {**STATES[resource], "new": 1}}) == [".after.new"]


def test_every_kind_of_resource_has_its_table() -> None:
    assert set(WRITTEN_BY) == set(ResourceType)


def redacted(resource: ResourceType, document: dict[str, Any], user_id: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(redacted_document(resource, rfc8785.dumps(document), Mention(user_id)))
    return result


@pytest.mark.parametrize(
    ("resource", "state", "left"),
    [
        (ResourceType.FLAG, flag(description="for ann"), flag(description=f"for {PLACEHOLDER}")),
        (ResourceType.FLAG, flag(owner="ann"), flag(owner=PLACEHOLDER)),
        (ResourceType.FLAG, flag(tags=("a", "ann")), {**flag(), "tags": ["a", PLACEHOLDER]}),
        (ResourceType.SEGMENT, segment(description="ann"), segment(description=PLACEHOLDER)),
        (ResourceType.SEGMENT, segment("x", "ann"), segment("x", PLACEHOLDER)),
        (ResourceType.USER, user(boss={"id": "ann"}), user(boss={"id": PLACEHOLDER})),
    ],
    ids=["description", "owner", "tag", "segment", "value", "attribute"],
)
def test_a_person_is_replaced_where_people_wrote(resource: ResourceType, state: Any, left: Any) -> None:
    assert redacted(resource, changed(state, state), "ann") == changed(
        json.loads(rfc8785.dumps(left)), json.loads(rfc8785.dumps(left))
    )


@pytest.mark.parametrize("resource", ResourceType)
def test_the_reason_of_any_change_is_of_people(resource: ResourceType) -> None:
    assert redacted(resource, {"change_reason": "ann asked"}, "ann") == {"change_reason": f"{PLACEHOLDER} asked"}


# All that the server writes into documents, and more that looks like it.
ORDINARY_IDS = (
    *("11", "2026", "28", "00", "on", "off", "IN", "ALL", "ANY", "admin", "beta", "vip", "plan", "tier", "shop"),
    *("standard", "key", "description", "attributes", "change_reason", "/plan/tier", "true", "null", "T11", "+00:00"),
    *("values", "CONTAINS", "before", "after", "revision", "00000000-0000-0000-0000-00000000000b", "2026-11-28"),
)


@pytest.mark.parametrize("user_id", ORDINARY_IDS)
def test_what_the_server_writes_names_nobody(user_id: str) -> None:
    for resource, state in STATES.items():
        document = changed(state, state, **({"password_changed": True} if resource is ResourceType.ADMIN_USER else {}))
        assert redacted(resource, document, user_id) == json.loads(rfc8785.dumps(document)), resource


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=64)


@settings(max_examples=1_000)
@given(user_id=words, other=words)
def test_an_odd_id_is_found_where_it_was_written_and_nowhere_else(user_id: str, other: str) -> None:
    texts = f"see {user_id} !"
    state = flag(description=texts, owner="the team")
    before = changed(json.loads(rfc8785.dumps(state)), None, note=other)

    after = redacted(ResourceType.FLAG, before, user_id)

    assert after["before"]["description"] == Mention(user_id).replaced_in(texts)
    kept = {**after, "before": {**after["before"], "description": texts}}
    if not Mention(user_id).is_in(["the team"]):
        assert kept == before
    again = redacted(ResourceType.FLAG, after, user_id)
    assert again == after


def test_of_a_document_about_the_person_nothing_that_people_wrote_is_left() -> None:
    document = {**changed(None, user(plan="secret")), "change_reason": "secret"}

    left = json.loads(emptied_document(ResourceType.USER, rfc8785.dumps(document)))

    expected = {**user(), "attributes": PLACEHOLDER}
    assert left == {"before": None, "after": expected, "change_reason": PLACEHOLDER}


def test_a_document_that_is_not_json_is_replaced_as_a_whole() -> None:
    assert redacted_document("flag", b"ann", Mention("ann")) == rfc8785.dumps(PLACEHOLDER)


def test_twin_a_search_in_everything_would_find_the_time() -> None:
    """Without the table the number of a month is everybody's id."""
    document = rfc8785.dumps(changed(flag()))

    assert Mention("11").is_in(json.loads(document))
    assert redacted_document("flag", document, Mention("11")) == document
