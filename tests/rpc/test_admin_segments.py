"""The segment RPCs: what they do to a segment, who is in it then, and every way in which they refuse."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1 import segment_pb2
from gatekeeper_client.v1.evaluation_pb2 import REASON_DEFAULT, REASON_TARGETING_MATCH, EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag, SegmentTarget
from gatekeeper_client.v1.segment_pb2 import Condition, ConditionOperator, Segment
from tests.support.clients import (
    Installation,
    Refusal,
    already_exists,
    created,
    installed,
    invalid,
    new_key,
    no_segment,
    refusal_of,
)

SERVER_DECIDES = ("member_count", "create_time", "update_time", "etag", "revision")
UPDATABLE = tuple(name for name in Segment.DESCRIPTOR.fields_by_name if name not in ("key", *SERVER_DECIDES))


@pytest.fixture
def alone(postgres: str) -> Iterator[Installation]:
    """An installation whose caps a test may use up."""
    with installed(postgres) as installation:
        yield installation


def value(of: Any) -> Value:
    return ParseDict(of, Value())


def condition(operator: str, *values: Any, attribute: str = "a", negate: bool = False) -> Condition:
    number = ConditionOperator.Value(f"CONDITION_OPERATOR_{operator}")
    return Condition(attribute=attribute, operator=number, values=map(value, values), negate=negate)


def bare_segment(key: str) -> Segment:
    return Segment(key=key, match=segment_pb2.SEGMENT_MATCH_ALL)


def rich_segment(key: str, *, etag: str = "") -> Segment:
    """Build a segment with something else than the default in every field that an editor decides."""
    return Segment(
        key=key,
        etag=etag,
        description="Enterprise — für alle, 全員 🎉",
        match=segment_pb2.SEGMENT_MATCH_ANY,
        conditions=[
            condition("IN", "DE", "AT", 43, 1e300, True, ["a", {"b": 0.5}], attribute="country"),
            condition("EXISTS", attribute="/org/name", negate=True),
        ],
    )


def decided_by_editor(segment: Segment) -> Segment:
    """Return the segment without what the server decides."""
    config = Segment()
    config.CopyFrom(segment)
    for field in SERVER_DECIDES:
        config.ClearField(field)  # type: ignore[arg-type] # One of its fields.
    return config


def create(installation: Installation, segment: Segment) -> Segment:
    return installation.admin.CreateSegment(pb.CreateSegmentRequest(segment=segment)).segment


def got(installation: Installation, key: str) -> pb.GetSegmentResponse:
    return installation.admin.GetSegment(pb.GetSegmentRequest(key=key))


def updated(installation: Installation, segment: Segment, *paths: str) -> pb.UpdateSegmentResponse:
    request = pb.UpdateSegmentRequest(segment=segment, update_mask=FieldMask(paths=paths))
    return installation.admin.UpdateSegment(request)


def delete(installation: Installation, key: str, **fields: Any) -> pb.DeleteSegmentResponse:
    return installation.admin.DeleteSegment(pb.DeleteSegmentRequest(key=key, **fields))


def add_members(installation: Installation, key: str, *users: str) -> None:
    installation.admin.AddSegmentMembers(iter([pb.AddSegmentMembersRequest(segment_key=key, user_ids=users)]))


def aimed_at(installation: Installation, *keys: str, value: bool = True) -> str:
    """Create a flag that is on for these segments and off for everybody else; return its key."""
    targets = [SegmentTarget(segment_key=key, value=value) for key in keys]
    return created(installation.admin, enabled=True, default_value=not value, segment_targets=targets).key


def is_in(installation: Installation, flag_key: str, attributes: dict[str, Any], user_id: str = "anna") -> bool:
    """Ask for the flag of one segment, and tell from the reason whether the segment decided."""
    context = EvaluationContext(user_id=user_id, attributes=ParseDict(attributes, Struct()))
    request = EvaluateFlagsRequest(context=context, flag_keys=[flag_key], include_details=True)
    detail = EvaluationServiceStub(installation.channels[None]).EvaluateFlags(request).details[flag_key]
    assert detail.reason in (REASON_DEFAULT, REASON_TARGETING_MATCH)
    return detail.reason == REASON_TARGETING_MATCH


# --- Create, get -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [rich_segment, bare_segment])
def test_create_keeps_what_the_editor_decided(installation: Installation, build: Callable[[str], Segment]) -> None:
    segment = build(new_key())

    response = installation.admin.CreateSegment(pb.CreateSegmentRequest(segment=segment))

    assert decided_by_editor(response.segment) == segment
    assert got(installation, segment.key) == pb.GetSegmentResponse(segment=response.segment, revision=response.revision)


def test_create_returns_the_segment_with_time_revision_and_etag(installation: Installation) -> None:
    before = Timestamp()
    before.GetCurrentTime()

    response = installation.admin.CreateSegment(pb.CreateSegmentRequest(segment=Segment(key=new_key())))

    assert before.ToDatetime() <= response.segment.create_time.ToDatetime()
    assert response.segment.update_time == response.segment.create_time
    assert response.segment.revision == response.revision == installation.revision()
    assert response.segment.etag


def test_create_ignores_what_only_the_server_decides(installation: Installation) -> None:
    long_ago = Timestamp(seconds=1)
    sent = Segment(
        key=new_key(), create_time=long_ago, update_time=long_ago, etag="mine", revision=99_999, member_count=7
    )

    segment = create(installation, sent)

    assert long_ago not in (segment.create_time, segment.update_time)
    assert (segment.etag != "mine", segment.revision) == (True, installation.revision())
    assert segment.member_count == 0


def test_match_is_all_when_not_given(installation: Installation) -> None:
    assert create(installation, Segment(key=new_key())).match == segment_pb2.SEGMENT_MATCH_ALL


def test_create_refuses_a_key_that_is_taken(installation: Installation) -> None:
    segment = create(installation, rich_segment(new_key()))

    assert refusal_of(lambda: create(installation, Segment(key=segment.key))) == already_exists(segment_key=segment.key)
    assert got(installation, segment.key).segment == segment


def test_get_refuses_a_key_that_no_segment_has(installation: Installation) -> None:
    assert refusal_of(lambda: got(installation, "nobody")) == no_segment("nobody")


def test_get_counts_the_members(installation: Installation) -> None:
    segment = create(installation, Segment(key=new_key()))
    add_members(installation, segment.key, "anna", "bob")
    segment.member_count = 2

    assert got(installation, segment.key).segment == segment


# --- Conditions ------------------------------------------------------------------------------------------------------

# For each operator: values, what matches, what does not.
OPERATORS: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "EQUALS": (["pro"], ["pro"], ["Pro", ["pro"], True, 5]),
    "IN": ([5, "a", [1]], [5, 5.0, "a", [1]], ["5", 6, True, [1, 1]]),
    "CONTAINS": (["ell"], ["hello", ["x", "ell"]], ["helo", ["hello"], 5]),
    "STARTS_WITH": (["he", "ha"], ["hello", "hamster"], ["Hello", "oh he", 5]),
    "ENDS_WITH": (["@a.org", "@b.org"], ["x@b.org"], ["x@c.org", ["x@a.org"]]),
    "GREATER_THAN": ([18], [18.5, 19], [18, 17, "19", True]),
    "GREATER_OR_EQUAL": ([18], [18, 19], [17.9, "18"]),
    "LESS_THAN": ([18], [17.9, -1], [18, "17", False]),
    "LESS_OR_EQUAL": ([18], [18, 17], [18.1]),
    "EXISTS": ([], ["", 0, False, [], {}], []),
    "BEFORE": (["2026-01-01T00:00:00Z"], ["2025-12-31T23:59:59Z"], ["2026-01-01T00:00:00Z", "2025", 5]),
    "AFTER": (["2026-01-01T00:00:00Z"], ["2026-01-01T00:00:00-01:00"], ["2026-01-01T00:30:00+01:00"]),
    "SEMVER_EQUAL": (["1.2.3"], ["1.2.3", "1.2.3+b"], ["1.2.3-a", "1.2", 1.2]),
    "SEMVER_GREATER": (["1.9.0"], ["1.10.0"], ["1.9.0", "1.10.0.0"]),
    "SEMVER_GREATER_OR_EQUAL": (["1.9.0"], ["1.9.0", "1.10.0"], ["1.9.0-rc.1"]),
    "SEMVER_LESS": (["1.10.0"], ["1.9.0", "1.10.0-rc.1"], ["1.10.0"]),
    "SEMVER_LESS_OR_EQUAL": (["1.10.0"], ["1.10.0"], ["1.10.1"]),
}


def test_every_operator_of_the_contract_is_in_the_table() -> None:
    names = {name.removeprefix("CONDITION_OPERATOR_") for name in ConditionOperator.keys()}  # noqa: SIM118 - an enum.

    assert names - {"UNSPECIFIED"} == OPERATORS.keys()


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_condition_selects_whom_it_matches_and_negated_all_others(installation: Installation, operator: str) -> None:
    values, hits, misses = OPERATORS[operator]
    plain, negated = new_key(), new_key()
    for key, negate in ((plain, False), (negated, True)):
        create(installation, Segment(key=key, conditions=[condition(operator, *values, negate=negate)]))
    flags = [aimed_at(installation, key) for key in (plain, negated)]

    answers = [[is_in(installation, flag, {"a": given}) for flag in flags] for given in (*hits, *misses, None)]

    assert answers == [[True, False]] * len(hits) + [[False, True]] * (len(misses) + 1)


def test_a_json_pointer_reads_inside_a_value(installation: Installation) -> None:
    segment = Segment(key=new_key(), conditions=[condition("EQUALS", "Acme", attribute="/org/names/0")])
    flag = aimed_at(installation, create(installation, segment).key)

    assert is_in(installation, flag, {"org": {"names": ["Acme"]}})
    assert not is_in(installation, flag, {"org": {"names": ["Other", "Acme"]}})


# All that is bad about a segment: tests/unit/wire/test_segments.py.
BAD: dict[str, tuple[Segment, str]] = {
    "key": (Segment(key="a\0"), "segment.key"),
    "description": (Segment(description="\0"), "segment.description"),
    "match": (Segment(match=9), "segment.match"),  # type: ignore[arg-type]
    "number of conditions": (Segment(conditions=[condition("EXISTS")] * 65), "segment.conditions"),
    "value": (Segment(conditions=[condition("EXISTS"), condition("IN", 1, "\0")]), "segment.conditions[1].values[1]"),
}


@pytest.mark.parametrize(("segment", "field"), BAD.values(), ids=BAD.keys())
def test_a_bad_segment_is_refused_by_field_and_not_created(
    installation: Installation, segment: Segment, field: str
) -> None:
    sent, before = Segment(key=new_key()), installation.revision()
    sent.MergeFrom(segment)
    if "key" in field:
        sent.key = segment.key

    assert refusal_of(lambda: create(installation, sent)) == invalid(field)
    assert installation.revision() == before


def test_values_at_the_limits_are_stored_and_read_back_unchanged(installation: Installation) -> None:
    edges = [2.0**53 - 1, 2.0**53, -(2.0**53), 1e300, 5e-324, 0.1, "", "x" * 256, "%s {} '", [[[[1]]]], {"a": {}}]
    conditions = [condition("IN", *edges), condition("IN", *range(1_000 - len(edges)))]
    conditions += [condition("EXISTS", attribute="x" * 256)] * 62
    segment = Segment(
        key="S" * 128, description="ü" * 1_024, match=segment_pb2.SEGMENT_MATCH_ANY, conditions=conditions
    )

    create(installation, segment)

    assert decided_by_editor(got(installation, segment.key).segment) == segment
    flag = aimed_at(installation, segment.key)
    assert [is_in(installation, flag, {"a": edge}) for edge in edges] == [True] * len(edges)


# --- Update ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", UPDATABLE)
def test_update_changes_the_field_in_the_mask_and_no_other(installation: Installation, path: str) -> None:
    before = create(installation, bare_segment(new_key()))
    expected = decided_by_editor(before)
    FieldMask(paths=[path]).MergeMessage(rich_segment(before.key), expected)

    after = updated(installation, rich_segment(before.key), path).segment

    assert decided_by_editor(after) == expected != decided_by_editor(before)
    assert got(installation, before.key).segment == after


def test_update_changes_all_fields_of_the_mask_at_once(installation: Installation) -> None:
    segment = rich_segment(create(installation, bare_segment(new_key())).key)

    assert decided_by_editor(updated(installation, segment, *UPDATABLE, *UPDATABLE).segment) == segment


def test_update_sets_masked_fields_that_were_not_sent_to_their_defaults(installation: Installation) -> None:
    rich = create(installation, rich_segment(new_key()))

    assert decided_by_editor(updated(installation, Segment(key=rich.key), *UPDATABLE).segment) == bare_segment(rich.key)


def test_update_keeps_the_creation_time_and_the_members(installation: Installation) -> None:
    before = create(installation, bare_segment(new_key()))
    add_members(installation, before.key, "anna", "bob", "cleo")

    response = updated(installation, Segment(key=before.key, description="changed"), "description")

    after = response.segment
    assert (after.create_time, after.member_count) == (before.create_time, 3)
    assert after.update_time.ToDatetime() > before.update_time.ToDatetime()
    assert after.revision == response.revision == installation.revision()
    assert after.etag != before.etag


BAD_MASKS = {
    "absent": ((), "update_mask"),
    "unknown path": (("colour",), "update_mask.paths[0]"),
    "everything": (("*",), "update_mask.paths[0]"),
    "bad after good": (("match", "conditions", "key"), "update_mask.paths[2]"),
    **{path: ((path,), "update_mask.paths[0]") for path in ("key", *SERVER_DECIDES)},
    "nested": (("conditions.values",), "update_mask.paths[0]"),
    "as JSON writes it": (("Conditions",), "update_mask.paths[0]"),
}


@pytest.mark.parametrize(("paths", "field"), BAD_MASKS.values(), ids=BAD_MASKS.keys())
def test_update_refuses_a_mask_with_any_other_path_and_changes_nothing(
    installation: Installation, paths: tuple[str, ...], field: str
) -> None:
    before = got(installation, create(installation, bare_segment(new_key())).key)

    refusal = refusal_of(lambda: updated(installation, rich_segment(before.segment.key), *paths))

    assert (refusal, got(installation, before.segment.key)) == (invalid(field), before)


def test_update_ignores_bad_fields_that_the_mask_does_not_name(installation: Installation) -> None:
    segment = create(installation, bare_segment(new_key()))
    sent = Segment(key=segment.key, description="new", conditions=[Condition()])

    assert updated(installation, sent, "description").segment.description == "new"


def test_update_refuses_bad_conditions_by_path_and_keeps_those_it_had(installation: Installation) -> None:
    before = create(installation, rich_segment(new_key()))
    sent = Segment(key=before.key, conditions=[condition("EXISTS"), condition("IN", "a", "b", None)])

    refusal = refusal_of(lambda: updated(installation, sent, "conditions"))

    assert refusal == invalid("segment.conditions[1].values[2]")
    assert got(installation, before.key).segment == before


def test_every_change_of_a_segment_is_evaluated_by_the_time_it_is_answered(installation: Installation) -> None:
    key, seen = new_key(), []
    create(
        installation, Segment(key=key, conditions=[condition("EQUALS", "x"), condition("EQUALS", "y", attribute="b")])
    )
    flag = aimed_at(installation, key)
    changes: tuple[Callable[[], object], ...] = (
        lambda: None,
        lambda: updated(installation, Segment(key=key, match=segment_pb2.SEGMENT_MATCH_ANY), "match"),
        lambda: updated(installation, Segment(key=key, conditions=[condition("EQUALS", "z")]), "conditions"),
        lambda: add_members(installation, key, "anna"),
    )

    for change in changes:
        change()
        seen.append(is_in(installation, flag, {"a": "x"}))

    assert seen == [False, True, False, True]


# --- Flags that aim at segments --------------------------------------------------------------------------------------


def test_the_first_segment_in_the_flags_order_that_the_user_is_in_decides(installation: Installation) -> None:
    first, second = new_key(), new_key()
    for key in (first, second):
        create(installation, Segment(key=key))
        add_members(installation, key, "anna")
    flag = created(installation.admin, enabled=True).key
    seen = []

    for order in ((first, second), (second, first), (second,)):
        targets = [SegmentTarget(segment_key=key, value=key == first) for key in order]
        change = pb.UpdateFlagRequest(
            flag=Flag(key=flag, segment_targets=targets), update_mask=FieldMask(paths=["segment_targets"])
        )
        installation.admin.UpdateFlag(change)
        detail = installation.evaluate(flag, "anna")
        seen.append((detail.value, detail.segment_key))

    assert seen == [(True, first), (False, second), (False, second)]


# --- Delete ----------------------------------------------------------------------------------------------------------


def test_delete_removes_the_segment(installation: Installation) -> None:
    segment = create(installation, rich_segment(new_key()))

    response = delete(installation, segment.key, etag=segment.etag)

    assert response.revision == installation.revision() == segment.revision + 1
    assert refusal_of(lambda: got(installation, segment.key)) == no_segment(segment.key)


def in_use(key: str, *flag_keys: str, count: int) -> Refusal:
    metadata = {"segment_key": key, "flag_keys": ",".join(flag_keys), "flag_count": str(count)}
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, "SEGMENT_IN_USE", metadata)


@pytest.mark.parametrize("validate_only", [True, False])
def test_delete_refuses_a_segment_that_flags_use_and_names_them(
    installation: Installation, validate_only: bool
) -> None:
    segment = create(installation, bare_segment(new_key()))
    add_members(installation, segment.key, "anna")
    flags = sorted(aimed_at(installation, segment.key) for _ in range(2))

    refusal = refusal_of(lambda: delete(installation, segment.key, validate_only=validate_only))

    assert refusal == in_use(segment.key, *flags, count=2)
    assert is_in(installation, flags[0], {})


def test_delete_names_ten_of_many_flags_and_counts_all(installation: Installation) -> None:
    segment = create(installation, bare_segment(new_key()))
    prefix = new_key()
    for number in range(12):
        targets = [SegmentTarget(segment_key=segment.key, value=False)]
        created(installation.admin, key=f"{prefix}{number:02}", segment_targets=targets)

    refusal = refusal_of(lambda: delete(installation, segment.key))

    assert refusal == in_use(segment.key, *(f"{prefix}{number:02}" for number in range(10)), count=12)


def test_a_segment_can_be_deleted_once_no_flag_uses_it(installation: Installation) -> None:
    segment = create(installation, bare_segment(new_key()))
    updated_flag, deleted_flag = (aimed_at(installation, segment.key) for _ in range(2))
    installation.admin.UpdateFlag(
        pb.UpdateFlagRequest(flag=Flag(key=updated_flag), update_mask=FieldMask(paths=["segment_targets"]))
    )
    installation.admin.DeleteFlag(pb.DeleteFlagRequest(key=deleted_flag))

    assert delete(installation, segment.key).revision == installation.revision()


def test_a_segment_created_under_a_freed_key_has_none_of_the_old_members(installation: Installation) -> None:
    key = create(installation, bare_segment(new_key())).key
    add_members(installation, key, "anna")

    delete(installation, key)
    again = create(installation, bare_segment(key))

    assert (again.member_count, got(installation, key).segment.member_count) == (0, 0)
    assert not is_in(installation, aimed_at(installation, key), {})


# --- List ------------------------------------------------------------------------------------------------------------

LISTED = ["10", "9", "A_b", "a-b", "a.b", "aXb", "a_b", "b"]


@pytest.fixture(scope="module")
def listed(postgres: str) -> Iterator[Installation]:
    """An installation with the segments of `LISTED` and no others, of which the last has two members."""
    with installed(postgres) as installation:
        installation.execute("DELETE FROM segments")
        for key in reversed(LISTED):
            create(installation, rich_segment(key))
        add_members(installation, "b", "anna", "bob")
        yield installation


def test_segments_are_listed_whole_by_key_at_one_revision(listed: Installation) -> None:
    page = listed.admin.ListSegments(pb.ListSegmentsRequest())

    expected = [got(listed, key).segment for key in LISTED]
    assert page == pb.ListSegmentsResponse(segments=expected, revision=listed.revision())
    assert [segment.member_count for segment in page.segments] == [0] * 7 + [2]


@pytest.mark.parametrize(
    ("prefix", "keys"),
    [("a", ["a-b", "a.b", "aXb", "a_b"]), ("A", ["A_b"]), ("a_", ["a_b"]), ("%", []), ("b", ["b"]), ("bb", [])],
)
def test_segments_are_filtered_by_prefix(listed: Installation, prefix: str, keys: list[str]) -> None:
    page = listed.admin.ListSegments(pb.ListSegmentsRequest(key_prefix=prefix))

    assert [segment.key for segment in page.segments] == keys


@pytest.mark.parametrize("page_size", [1, 3, 4, 8, 1_000, 0])
def test_pages_of_segments_together_are_the_whole_list(listed: Installation, page_size: int) -> None:
    request, keys = pb.ListSegmentsRequest(page_size=page_size), []
    while True:
        page = listed.admin.ListSegments(request)
        keys += [segment.key for segment in page.segments]
        request.page_token = page.next_page_token
        if not request.page_token:
            break

    assert keys == LISTED


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListSegmentsRequest(page_size=-1), "page_size"),
        (pb.ListSegmentsRequest(page_size=1_001), "page_size"),
        (pb.ListSegmentsRequest(page_token="made-up"), "page_token"),
        (pb.ListSegmentsRequest(key_prefix="x" * 129), "key_prefix"),
    ],
    ids=["negative size", "large size", "token", "long prefix"],
)
def test_a_bad_listing_is_refused(listed: Installation, request_: pb.ListSegmentsRequest, field: str) -> None:
    assert refusal_of(lambda: listed.admin.ListSegments(request_)) == invalid(field)


def test_a_page_token_belongs_to_its_prefix(listed: Installation) -> None:
    token = listed.admin.ListSegments(pb.ListSegmentsRequest(page_size=1)).next_page_token
    stolen = pb.ListSegmentsRequest(page_size=1, key_prefix="a", page_token=token)

    assert refusal_of(lambda: listed.admin.ListSegments(stolen)) == invalid("page_token")


# --- Caps ------------------------------------------------------------------------------------------------------------


def scanning(operator: str, count: int) -> list[Condition]:
    return [condition(operator, *(f"{number}" for number in range(count)))]


def exhausted(**metadata: object) -> Refusal:
    variables = {name: str(variable) for name, variable in metadata.items()}
    return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED", variables)


def test_all_segments_together_have_1000_values_of_the_scanning_operators(alone: Installation) -> None:
    create(alone, Segment(key="a", conditions=scanning("CONTAINS", 400)))
    create(alone, Segment(key="b", conditions=scanning("STARTS_WITH", 400)))
    create(alone, Segment(key="c", conditions=[*scanning("ENDS_WITH", 200), *scanning("IN", 800)]))
    one_more = Segment(key="d", conditions=scanning("CONTAINS", 1))

    created_ = refusal_of(lambda: create(alone, one_more))
    grown = refusal_of(lambda: updated(alone, Segment(key="c", conditions=scanning("CONTAINS", 201)), "conditions"))

    assert created_ == exhausted(limit=1_000, used=1_000, wanted=1)
    assert grown == exhausted(limit=1_000, used=800, wanted=201)
    assert refusal_of(lambda: got(alone, "d")) == no_segment("d")


def test_what_a_segment_gives_back_another_may_use(alone: Installation) -> None:
    create(alone, Segment(key="a", conditions=scanning("CONTAINS", 1_000)))
    create(alone, Segment(key="b"))
    updated(alone, Segment(key="a", conditions=scanning("IN", 1_000)), "conditions")
    updated(alone, Segment(key="b", conditions=scanning("ENDS_WITH", 1_000)), "conditions")
    delete(alone, "b")

    assert create(alone, Segment(key="c", conditions=scanning("CONTAINS", 1_000))).key == "c"


def test_a_description_may_change_while_the_cap_is_used_up(alone: Installation) -> None:
    create(alone, Segment(key="a", conditions=scanning("CONTAINS", 1_000)))

    assert updated(alone, Segment(key="a", description="x"), "description").segment.description == "x"


def test_segments_name_at_most_a_million_stored_values(alone: Installation) -> None:
    alone.execute("INSERT INTO user_attribute_counts VALUES ('plan', 999_000), ('age', 1_000), ('rare', 1)")
    create(alone, Segment(key="a", conditions=[condition("EXISTS", attribute=name) for name in ("plan", "/age/0")]))
    create(alone, Segment(key="b", conditions=[condition("EXISTS", attribute="plan")]))

    refusal = refusal_of(lambda: create(alone, Segment(key="c", conditions=[condition("EXISTS", attribute="rare")])))

    assert refusal == exhausted(limit=1_000_000, wanted=1_000_001)


def test_what_the_caps_are_counted_on_is_kept_by_every_write(alone: Installation) -> None:
    columns = "SELECT attribute_names, scanned_values FROM segments WHERE key = 'a'"
    rich = Segment(
        key="a",
        conditions=[
            condition("CONTAINS", "x", "y", attribute="/org~1/x"),
            condition("ENDS_WITH", "z", attribute="mail"),
            condition("IN", 1, 2, attribute="mail"),
        ],
    )
    create(alone, rich)
    seen = alone.query(columns)
    updated(alone, Segment(key="a", conditions=[condition("EXISTS", attribute="b")]), "conditions")
    seen += alone.query(columns)

    assert seen == [(["mail", "org/"], 3), (["b"], 0)]
