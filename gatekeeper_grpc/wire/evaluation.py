"""Evaluation, between domain types and messages."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, repeat
from typing import Any

from google.protobuf.struct_pb2 import Struct

from gatekeeper_client.v1 import evaluation_pb2
from gatekeeper_client.v1 import evaluation_service_pb2 as service
from gatekeeper_grpc.domain.attribute import JsonValue
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail
from gatekeeper_grpc.domain.limits import (
    MAX_ATTRIBUTES_BYTES,
    MAX_FLAG_KEYS,
    MAX_USER_ID_BYTES,
    check_count,
    check_distinct,
    check_keys,
    check_user_id,
)
from gatekeeper_grpc.domain.selection import Selection
from gatekeeper_grpc.draws import Records, Template, records, template
from gatekeeper_grpc.wire.json import struct_from_proto
from gatekeeper_grpc.wire.portions import portions

# Twice as many as an installation may have by default, some 6 MiB. If there are more flags, requests for all of them
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


def check_min_revision(min_revision: int) -> None:
    """Check the revision that an evaluation request asks for.

    Raises:
        InvalidArgument: It is negative.
    """
    if min_revision < 0:
        raise InvalidArgument.of("min_revision", "must be 1 or more, or 0 for any revision")


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
    selection: Selection, values: bytes, *, stale: bool, details: Sequence[EvaluationDetail] = ()
) -> bytes:
    """Serialise an `EvaluateFlagsResponse`, without making the messages that it consists of.

    But for the byte that is the value of a flag, answers to one selection are the same.
    """
    serialised: tuple[Template, Template] = selection.serialised or _serialised(selection)
    answer = serialised[stale].filled(values)
    return answer + _details_to_bytes(selection, details) if details else answer


def _serialised(selection: Selection) -> tuple[Template, Template]:
    """Serialise what answers to a selection are made of, once: those of a fresh snapshot, and of a stale one."""
    entries = [_entry_of(plan.key) for plan in selection.plans]
    # The value is the last byte of an entry.
    slots = [end - 1 for end in accumulate(map(len, entries))]
    fresh, stale = (
        service.EvaluateFlagsResponse(
            unknown_flag_keys=selection.unknown_flag_keys, revision=selection.revision, stale=stale
        ).SerializeToString()
        for stale in (False, True)
    )
    flags = b"".join(entries)
    answer = selection.serialised = template(flags + fresh, slots), template(flags + stale, slots)
    return answer


def _details_to_bytes(selection: Selection, details: Sequence[EvaluationDetail]) -> bytes:
    message = service.EvaluateFlagsResponse()
    for plan, detail in zip(selection.plans, details, strict=True):
        message.details[plan.key].CopyFrom(detail_to_proto(detail))
    return message.SerializeToString()


@lru_cache(maxsize=_REMEMBERED_FLAGS)
def _entry_of(flag_key: str) -> bytes:
    """Return the field that says that a flag is false."""
    return service.EvaluateFlagsResponse(flags={flag_key: False}).SerializeToString()


def split_header(selection: Selection, *, stale: bool) -> Iterator[service.BulkEvaluateFlagsResponse]:
    """Convert what holds for a whole bulk stream; flag keys that do not fit below 1 MiB continue in further headers."""
    unknown: Sequence[str] = selection.unknown_flag_keys
    for flag_keys in portions(plan.key for plan in selection.plans):
        header = service.BulkEvaluationHeader(
            flag_keys=flag_keys, unknown_flag_keys=unknown, revision=selection.revision, stale=stale
        )
        yield service.BulkEvaluateFlagsResponse(header=header)
        unknown = ()


def users_of(contexts: Sequence[evaluation_pb2.EvaluationContext]) -> tuple[list[str], list[bytes]] | None:
    """Return the ids of users, as text and in UTF-8; None if one is anonymous, is malformed or has attributes.

    For many contexts at once, in a tenth of the time of `context_from_proto` for each.
    """
    # The stubs allow literal names only, which `repeat` loses. A method of each context takes twice the time.
    has_field: Any = evaluation_pb2.EvaluationContext.HasField
    if any(map(has_field, contexts, repeat("attributes"))):
        return None
    user_ids = [context.user_id for context in contexts]
    users = [*map(str.encode, user_ids)]
    lengths = [*map(len, users)]
    if not 0 < min(lengths) <= max(lengths) <= MAX_USER_ID_BYTES or b"\0" in b"".join(users):
        return None
    return user_ids, users


def results_to_bytes(users: Sequence[bytes], values: bytes, *, flags: int) -> bytes:
    """Serialise the results of many users as a field of a batch each.

    Args:
        users: The ids in UTF-8; empty for an anonymous user.
        values: A byte for the value of each flag, of one user after the other.
        flags: How many there are for each user.
    """
    return _records(flags).joined(users, values)


@lru_cache
def _records(flags: int) -> Records:
    """Return what joins results, which begin alike for all user ids of a length."""
    values = bytes(flags)
    begin = _field(2, _field(1, values)).removesuffix(values) if flags else _field(2, b"")
    return records([_result_head(length, len(begin) + flags) for length in range(MAX_USER_ID_BYTES + 1)], begin)


def _result_head(user_bytes: int, rest_bytes: int) -> bytes:
    """Return what stands before the user id in a result of a batch."""
    user = bytes(user_bytes)
    rest = bytes(rest_bytes)
    return _field(1, (_field(1, user) if user else b"") + rest).removesuffix(user + rest)


def error_to_bytes(user_id: str, error: InvalidArgument) -> bytes:
    """Serialise why one context of a bulk message was not evaluated, as a field of a batch."""
    result = service.BulkEvaluationResult(user_id=user_id, error=error_to_proto(error))
    return _field(1, result.SerializeToString())


def error_to_proto(error: InvalidArgument) -> service.BulkEvaluationError:
    """Convert why one context was not evaluated."""
    return service.BulkEvaluationError(reason=error.reason, field=error.metadata.get("field", ""), message=str(error))


def split_results(results: Iterable[bytes]) -> Iterator[bytes]:
    """Spread results, as fields of a batch, over responses below 1 MiB, serialised, in order; none: one empty batch."""
    for portion in portions(results):
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
