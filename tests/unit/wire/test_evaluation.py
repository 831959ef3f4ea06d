"""Evaluation on the wire: what contexts may hold, how answers are written, how they are split."""

import math
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct, Value

from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext as ContextMessage
from gatekeeper_client.v1.evaluation_pb2 import Reason as ReasonMessage
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsResponse,
    BulkEvaluation,
    BulkEvaluationResult,
    EvaluateFlagsResponse,
)
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail, Reason
from gatekeeper_grpc.domain.evaluator import compile_flag, detail
from gatekeeper_grpc.domain.flag import Flag, FlagConfig
from gatekeeper_grpc.domain.selection import Selection
from gatekeeper_grpc.wire.evaluation import (
    answer_to_bytes,
    attributes_from_proto,
    check_flag_keys,
    check_min_revision,
    context_from_proto,
    detail_to_proto,
    error_to_bytes,
    results_to_bytes,
    split_header,
    split_results,
    users_of,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def flag(key: str) -> Flag:
    return Flag(flag_id=1, config=FlagConfig(key=key), create_time=NOW, update_time=NOW, revision=1)


def struct(attributes: dict[str, Any]) -> Struct:
    return ParseDict(attributes, Struct())


def objects(levels: int) -> dict[str, Any]:
    """So many objects within each other, the innermost empty."""
    return {"inner": objects(levels - 1)} if levels > 1 else {}


def lists(levels: int) -> dict[str, Any]:
    """An object of lists within each other: so many levels in all, the innermost empty."""
    value: list[Any] = []
    for _ in range(levels - 2):
        value = [value]
    return {"outer": value}


def padded(size: int) -> Struct:
    """Attributes of exactly so many bytes as a message."""
    attributes = Struct()
    pad = attributes.fields["pad"]
    pad.string_value = ""
    while attributes.ByteSize() != size:
        pad.string_value = "x" * (len(pad.string_value) + size - attributes.ByteSize())
    return attributes


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param({}, id="none"),
        pytest.param({"plan": "pro", "age": 42.5, "beta": True, "gone": None}, id="every scalar"),
        pytest.param({"tags": ["a", 1.0, None, {"b": False}], "empty": [], "object": {}}, id="lists and objects"),
        pytest.param(objects(5), id="5 levels of objects"),
        pytest.param(lists(5), id="5 levels with lists"),
    ],
)
def test_attributes_become_the_json_values_they_stand_for(attributes: dict[str, Any]) -> None:
    message = ContextMessage(user_id="alice", attributes=struct(attributes))

    assert context_from_proto("context", message) == EvaluationContext(user_id="alice", attributes=attributes)


@pytest.mark.parametrize("message", [ContextMessage(), ContextMessage(user_id="")], ids=["absent", "empty"])
def test_a_context_without_a_user_id_is_anonymous(message: ContextMessage) -> None:
    assert context_from_proto("context", message) == EvaluationContext(user_id=None)


def test_a_value_without_a_kind_is_null() -> None:
    assert attributes_from_proto("attributes", Struct(fields={"unset": Value()})) == {"unset": None}


def test_attributes_of_16_kib_are_accepted() -> None:
    attributes = padded(16 * 1024)

    assert attributes_from_proto("attributes", attributes) == {"pad": attributes["pad"]}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        pytest.param(ContextMessage(user_id="u" * 257), "context.user_id", id="user id too long"),
        pytest.param(ContextMessage(user_id="a\0"), "context.user_id", id="user id with NUL"),
        pytest.param(
            ContextMessage(user_id="a", attributes=padded(16 * 1024 + 1)), "context.attributes", id="attributes too big"
        ),
        pytest.param(
            ContextMessage(user_id="a", attributes=struct(objects(6))),
            "context.attributes",
            id="objects too deep",
        ),
        pytest.param(
            ContextMessage(user_id="a", attributes=struct(lists(6))),
            "context.attributes",
            id="lists too deep",
        ),
        *(
            pytest.param(
                ContextMessage(user_id="a", attributes=Struct(fields={"n": Value(number_value=number)})),
                "context.attributes",
                id=str(number),
            )
            for number in (math.nan, math.inf, -math.inf)
        ),
    ],
)
def test_a_bad_context_is_refused_and_its_field_named(message: ContextMessage, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        context_from_proto("context", message)

    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        pytest.param(["a"] * 2, "flag_keys[1]", id="twice"),
        pytest.param(["a", "?"], "flag_keys[1]", id="malformed"),
        pytest.param([f"k{number}" for number in range(1_001)], "flag_keys", id="too many"),
    ],
)
def test_bad_flag_keys_are_refused_and_their_field_named(keys: list[str], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_flag_keys(keys)

    assert [violation.field for violation in refused.value.violations] == [field]


def test_1000_flag_keys_are_accepted() -> None:
    check_flag_keys([f"k{number}" for number in range(1_000)])


def test_a_negative_revision_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="min_revision must be 1 or more, or 0 for any revision"):
        check_min_revision(-1)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_its_name_in_the_contract(reason: Reason) -> None:
    message = detail_to_proto(EvaluationDetail(variant="on", reason=reason))

    assert ReasonMessage.Name(message.reason) == f"REASON_{reason.name}"


@pytest.mark.parametrize(("slot", "present"), [(None, False), (0, True), (99, True)])
def test_the_bucket_is_sent_when_there_was_a_draw_0_included(slot: int | None, *, present: bool) -> None:
    message = detail_to_proto(EvaluationDetail(variant="off", reason=Reason.SPLIT, bucket=slot))

    assert (message.HasField("bucket"), message.bucket) == (present, slot or 0)


def test_an_answer_says_variant_value_and_segment() -> None:
    message = detail_to_proto(EvaluationDetail(variant="on", reason=Reason.TARGETING_MATCH, segment_key="staff"))

    assert (message.variant, message.value, message.segment_key) == ("on", True, "staff")


def test_the_error_of_a_bulk_context_names_reason_field_and_remedy() -> None:
    error = InvalidArgument.of("contexts[3].user_id", "must be 1 to 256 bytes")

    (response,) = map(BulkEvaluateFlagsResponse.FromString, split_results([error_to_bytes("", error)]))

    (result,) = response.batch.results
    assert (result.error.reason, result.error.field, result.error.message, [*result.evaluation.values]) == (
        "INVALID_ARGUMENT",
        "contexts[3].user_id",
        "contexts[3].user_id must be 1 to 256 bytes",
        [],
    )


@pytest.mark.parametrize(
    ("count", "size"),
    [
        pytest.param(5_000, 1, id="many tiny results"),
        pytest.param(5_000, 210, id="one message and a little"),
        pytest.param(5_000, 1_000, id="five messages"),
        pytest.param(70, 20_000, id="few large results"),
    ],
)
def test_answers_are_split_below_1_mib_with_their_order_kept(count: int, size: int) -> None:
    results = [
        BulkEvaluationResult(user_id=str(number), evaluation=BulkEvaluation(values=[True] * size))
        for number in range(count)
    ]

    serialised = [results_to_bytes([result.user_id.encode()], bytes([True]) * size, flags=size) for result in results]
    responses = [BulkEvaluateFlagsResponse.FromString(response) for response in split_results(serialised)]

    assert [result for response in responses for result in response.batch.results] == results
    assert max(response.ByteSize() for response in responses) < 1 << 20
    assert all(responses[at].ByteSize() > (1 << 20) * 0.9 for at in range(len(responses) - 1))


def test_more_flag_keys_than_fit_into_a_message_go_on_in_further_headers() -> None:
    keys = [f"{number:05}{'k' * 123}" for number in range(10_000)]
    plans = [compile_flag(flag(key), has_targets=False) for key in keys]
    selection = Selection(plans, unknown_flag_keys=["x"], are_named=True, revision=7)

    responses = list(split_header(selection, stale=True))

    headers = [response.header for response in responses]
    assert [key for header in headers for key in header.flag_keys] == keys
    assert [[*header.unknown_flag_keys] for header in headers] == [["x"], []]
    assert {(header.revision, header.stale) for header in headers} == {(7, True)}
    assert max(response.ByteSize() for response in responses) < 1 << 20


def test_no_flags_are_one_header_without_keys() -> None:
    (response,) = split_header(Selection(revision=7), stale=False)

    assert (response.HasField("header"), [*response.header.flag_keys]) == (True, [])


def test_no_results_are_one_empty_answer() -> None:
    (response,) = map(BulkEvaluateFlagsResponse.FromString, split_results([]))

    assert (response.HasField("batch"), [*response.batch.results]) == (True, [])


@pytest.mark.parametrize("count", [0, 1, 127, 128, 20_000])
@pytest.mark.parametrize("user_id", ["", "u", "u" * 127, "u" * 128, "\U0001f600" * 64])
def test_results_in_bytes_are_the_messages_built_field_by_field(user_id: str, count: int) -> None:
    values = [[number % 3 == 0 for number in range(count)], [number % 3 == 1 for number in range(count)]]
    users = [user_id, "another"]
    whole = [
        BulkEvaluationResult(user_id=user, evaluation=BulkEvaluation(values=own))
        for user, own in zip(users, values, strict=True)
    ]

    serialised = results_to_bytes([user.encode() for user in users], bytes([*chain(*values)]), flags=count)

    (response,) = map(BulkEvaluateFlagsResponse.FromString, split_results([serialised, serialised]))
    assert [*response.batch.results] == [*whole, *whole]


@pytest.mark.parametrize("count", [0, 1, 200])
@pytest.mark.parametrize("is_explained", [False, True])
def test_an_answer_in_bytes_is_the_message_built_field_by_field(count: int, is_explained: bool) -> None:
    plans = [compile_flag(flag("k" * (number % 120 + 1) + f".{number}"), has_targets=False) for number in range(count)]
    details = [detail("on" if number % 3 else "off", Reason.STATIC) for number in range(count)]
    selection = Selection(plans, unknown_flag_keys=["gone"], are_named=True, revision=2**40)
    whole = EvaluateFlagsResponse(unknown_flag_keys=["gone"], revision=2**40, stale=True)
    whole.flags.update({plan.key: one.value for plan, one in zip(plans, details, strict=True)})
    for plan, one in zip(plans, details if is_explained else (), strict=is_explained):
        whole.details[plan.key].CopyFrom(detail_to_proto(one))

    values = bytes([one.value for one in details])
    answer = answer_to_bytes(selection, values, stale=True, details=details if is_explained else ())

    assert EvaluateFlagsResponse.FromString(answer) == whole


@pytest.mark.parametrize(
    "odd",
    [
        ContextMessage(),
        ContextMessage(user_id="a\0b"),
        ContextMessage(user_id="\U0001f600" * 65),
        ContextMessage(user_id="anna", attributes=Struct()),
    ],
)
def test_users_are_read_together_if_all_have_just_an_id(odd: ContextMessage) -> None:
    plain = [ContextMessage(user_id=user_id) for user_id in ("anna", "\U0001f600" * 64)]

    assert users_of(plain) == (["anna", "\U0001f600" * 64], [b"anna", ("\U0001f600" * 64).encode()])
    assert users_of([*plain, odd]) is None
