"""Results stored for retries: what is read back is what was stored, types included, whichever release stored it."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gatekeeper_grpc.domain.admin_user import AdminUser
from gatekeeper_grpc.domain.api_token import ApiToken, ApiTokenConfig, CreatedApiToken
from gatekeeper_grpc.domain.attribute import JsonValue, canonical, identity
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.client_key import ClientKey, ClientKeyConfig, CreatedClientKey, RateTier
from gatekeeper_grpc.domain.commands import TargetEditResult
from gatekeeper_grpc.domain.condition import Condition, Operator
from gatekeeper_grpc.domain.erasure import Erased
from gatekeeper_grpc.domain.flag import ON, Flag, FlagConfig, SegmentTarget
from gatekeeper_grpc.domain.segment import CountedSegment, Match, Segment, SegmentConfig
from gatekeeper_grpc.domain.user import User, UserProfile
from gatekeeper_grpc.store.mutations import NOTHING

TIMES = {"create_time": datetime(2026, 1, 31, 12, 0, 0, 123456, UTC), "update_time": datetime(2026, 2, 1, tzinfo=UTC)}
CONFIG = FlagConfig(
    key="a", enabled=True, tags=("x", "y"), segment_targets=(SegmentTarget(segment_key="s", variant=ON),), owner="team"
)
FLAG = Flag(flag_id=2**53 - 1, config=CONFIG, revision=7, **TIMES)
KEY = ClientKey(
    key_id="k",
    config=ClientKeyConfig(name="n", tier=RateTier.HIGH, expire_time=TIMES["update_time"]),
    create_time=TIMES["create_time"],
    revoke_time=TIMES["update_time"],
    revision=3,
)
TOKEN = ApiToken(
    token_id="t",
    config=ApiTokenConfig(name="n", role=Role.EDITOR, expire_time=TIMES["update_time"]),
    admin_id=1,
    username="ann",
    create_time=TIMES["create_time"],
    revoke_time=TIMES["update_time"],
    revision=3,
)
RESULTS = {
    Flag: FLAG,
    AdminUser: AdminUser(
        admin_id=1,
        username="ann",
        role=Role.EDITOR,
        enabled=False,
        create_time=TIMES["create_time"],
        update_time=TIMES["update_time"],
        revision=0,
        must_change_password=True,
    ),
    ClientKey: KEY,
    CreatedClientKey: CreatedClientKey(key=KEY, secret="s3cret"),
    ApiToken: TOKEN,
    CreatedApiToken: CreatedApiToken(token=TOKEN, secret="s3cret"),
    TargetEditResult: TargetEditResult(added_count=1, moved_count=2),
    Erased: Erased(targets_removed=1, memberships_removed=2, documents_redacted=3),
    int: 7,
}

# Whole numbers are integers up to 2**53, as RFC 8785 writes them; `canonical` refuses what no database holds.
numbers = st.integers(1 - 2**53, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9)
leaves = st.none() | st.booleans() | numbers | texts
json_values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=4
).map(lambda value: canonical(value, levels=9))
small_values = leaves.filter(lambda value: value is not None).map(canonical)


def read_back(kind: Any, result: Any) -> Any:
    """Store a result as JSON in the form of RFC 8785, as `MutationRunner` does, and read it."""
    codec: TypeAdapter[Any] = TypeAdapter(kind)
    return codec.validate_python(json.loads(rfc8785.dumps(codec.dump_python(result, mode="json"))))


@pytest.mark.parametrize("kind", RESULTS)
def test_a_stored_result_is_read_back(kind: type) -> None:
    assert read_back(kind, RESULTS[kind]) == RESULTS[kind]


def test_no_result_is_read_back() -> None:
    assert NOTHING.validate_python(NOTHING.dump_python(None, mode="json")) is None


@given(st.dictionaries(texts, json_values, max_size=4))
def test_attributes_keep_their_types(attributes: dict[str, JsonValue]) -> None:
    user = User(subject_id=UUID(int=7), profile=UserProfile(user_id="ann", attributes=attributes), revision=3, **TIMES)

    again = read_back(User, user)

    assert (again, identity(dict(again.attributes))) == (user, identity(dict(user.attributes)))


@given(st.lists(small_values, min_size=1, max_size=4), st.booleans())
def test_conditions_keep_the_types_of_their_values(values: list[JsonValue], negate: bool) -> None:
    condition = Condition(attribute="/a~1b", operator=Operator.IN, values=tuple(values), negate=negate)
    config = SegmentConfig(key="s", match=Match.ANY, conditions=(condition,))
    counted = CountedSegment(segment=Segment(segment_id=4, config=config, revision=5, **TIMES), member_count=6)

    again = read_back(CountedSegment, counted)

    assert again == counted
    assert all(again.segment.config.conditions[0].matches({"a/b": value}) is not negate for value in values)


def test_a_result_of_an_older_or_a_newer_release_is_read() -> None:
    codec = TypeAdapter(Flag)
    document = codec.dump_python(FLAG, mode="json")
    del document["config"]["owner"]

    read = codec.validate_python({**document, "new": 1, "config": {**document["config"], "newer": [2]}})

    assert read.config == FlagConfig(key="a", enabled=True, tags=CONFIG.tags, segment_targets=CONFIG.segment_targets)
