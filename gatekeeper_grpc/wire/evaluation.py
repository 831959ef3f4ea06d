"""Evaluation, between domain types and messages."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from google.protobuf.struct_pb2 import Struct

from gatekeeper_client.v1 import evaluation_pb2
from gatekeeper_client.v1 import evaluation_service_pb2 as service
from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail, Question
from gatekeeper_grpc.domain.evaluator import FlagPlan
from gatekeeper_grpc.domain.limits import (
    MAX_ATTRIBUTES_BYTES,
    MAX_FLAG_KEYS,
    check_count,
    check_distinct,
    check_keys,
    check_user_id,
)
from gatekeeper_grpc.domain.snapshot import Selection
from gatekeeper_grpc.wire.json import struct_from_proto
from gatekeeper_grpc.wire.portions import portions

# Twice as many as an installation may have by default, some 12 MiB. If there are more flags, requests for all of them
# find none remembered, and take ten times as long.
_REMEMBERED_FLAGS = 40_000
# A length below it takes one byte; a longer one has seven bits in each.
_ONE_BYTE = 0x80


def context_from_proto(field: str, message: evaluation_pb2.EvaluationContext) -> EvaluationContext:
    """Convert the user and the attributes to evaluate against; without a user id, or with an empty one: anonymous.

    Raises:
        InvalidArgument: Names the field below `field`.
    """
    user_id = message.user_id or None
    if user_id is not None:
        check_user_id(f"{field}.user_id", user_id)
    if not message.HasField("attributes"):
        return EvaluationContext(user_id=user_id)
    return EvaluationContext(
        user_id=user_id, attributes=attributes_from_proto(f"{field}.attributes", message.attributes)
    )


def only_context_from_proto(request: service.EvaluateFlagsRequest) -> EvaluationContext:
    """Convert the context of a request. An empty one is an anonymous user; none at all is a client's mistake.

    Raises:
        InvalidArgument: It is missing, or as `context_from_proto`.
    """
    if not request.HasField("context"):
        raise InvalidArgument.of("context", "must be set; leave it empty for an anonymous user")
    return context_from_proto("context", request.context)


def attributes_from_proto(field: str, message: Struct) -> dict[str, JsonValue]:
    """Convert attributes to JSON values.

    Raises:
        InvalidArgument: Over 16 KiB as a message, over 5 levels of objects and lists, or a number that is not finite.
    """
    if message.ByteSize() > MAX_ATTRIBUTES_BYTES:
        raise InvalidArgument.of(
            field, f"must be at most {MAX_ATTRIBUTES_BYTES // 1024} KiB, not {message.ByteSize()} bytes"
        )
    return struct_from_proto(field, message)


def check_flag_keys(flag_keys: Sequence[str]) -> None:
    """Check the flags that an evaluation request names.

    Raises:
        InvalidArgument: Over 1,000 keys, or one is malformed or repeated.
    """
    check_count("flag_keys", flag_keys, at_most=MAX_FLAG_KEYS)
    check_keys("flag_keys", flag_keys)
    check_distinct("flag_keys", flag_keys)


def question_from_proto(request: service.EvaluateFlagsRequest | service.BulkEvaluateFlagsRequest) -> Question:
    """Convert which flags to evaluate, and at which revision.

    Raises:
        InvalidArgument: As `check_flag_keys`, or `min_revision` is negative.
    """
    question = Question(tuple(request.flag_keys), request.min_revision)
    check_flag_keys(question.flag_keys)
    if question.min_revision < 0:
        raise InvalidArgument.of("min_revision", "must be 1 or more, or 0 for any revision")
    return question


def detail_to_proto(detail: EvaluationDetail) -> evaluation_pb2.EvaluationDetail:
    """Convert the result of one flag with its reason."""
    return evaluation_pb2.EvaluationDetail(
        value=detail.value,
        variant=detail.variant,
        reason=evaluation_pb2.Reason.ValueType(detail.reason),
        segment_key=detail.segment_key,
        bucket=detail.bucket,
    )


def answer_to_bytes(
    plans: Sequence[FlagPlan], details: Sequence[EvaluationDetail], rest: service.EvaluateFlagsResponse
) -> bytes:
    """Serialise an `EvaluateFlagsResponse`: the value of each flag, and everything else from `rest`.

    A message is the concatenation of its fields, and those of a flag are always the same: joining them takes a tenth of
    the time of a map field.
    """
    entries = [_entries_of(plan.key)[detail.value] for plan, detail in zip(plans, details, strict=True)]
    return b"".join([*entries, rest.SerializeToString()])


@lru_cache(maxsize=_REMEMBERED_FLAGS)
def _entries_of(flag_key: str) -> tuple[bytes, bytes]:
    """Return the field that says that a flag is false, and the one that says true, as bytes."""
    off, on = (service.EvaluateFlagsResponse(flags={flag_key: value}) for value in (False, True))
    return off.SerializeToString(), on.SerializeToString()


def split_header(selection: Selection, *, revision: int, stale: bool) -> Iterator[service.BulkEvaluateFlagsResponse]:
    """Convert what holds for a whole bulk stream; flag keys that do not fit below 1 MiB continue in further headers."""
    unknown: Sequence[str] = selection.unknown_flag_keys
    for flag_keys in portions(plan.key for plan in selection.plans):
        header = service.BulkEvaluationHeader(
            flag_keys=flag_keys, unknown_flag_keys=unknown, revision=revision, stale=stale
        )
        yield service.BulkEvaluateFlagsResponse(header=header)
        unknown = ()


def bulk_error_to_proto(user_id: str, error: InvalidArgument) -> service.BulkEvaluationResult:
    """Convert why one context of a bulk message was not evaluated."""
    return service.BulkEvaluationResult(
        user_id=user_id,
        error=service.BulkEvaluationError(
            reason=error.reason, field=error.metadata.get("field", ""), message=str(error)
        ),
    )


def result_to_bytes(user: bytes, values: Iterable[bool]) -> bytes:
    """Serialise the `BulkEvaluationResult` of one user, without making the messages that it consists of.

    Args:
        user: The id in UTF-8; empty for an anonymous user.
        values: The value of each flag.
    """
    packed = bytes(values)
    return (_field(1, user) if user else b"") + _field(2, _field(1, packed) if packed else b"")


def split_results(results: Iterable[bytes]) -> Iterator[bytes]:
    """Spread serialised results over responses below 1 MiB, serialised, in order; no results: one empty batch."""
    # Each becomes a field when it is made: all of them at once would keep the interpreter for milliseconds.
    for portion in portions(_field(1, result) for result in results):
        yield _field(2, b"".join(portion))


def _field(number: int, content: bytes) -> bytes:
    """Serialise a field of a message that is text, packed or a message itself."""
    length = len(content)
    if length < _ONE_BYTE:
        return bytes((number << 3 | 2, length)) + content
    head = bytearray((number << 3 | 2,))
    while length >= _ONE_BYTE:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + content
