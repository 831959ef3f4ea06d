"""Evaluation, between domain types and messages."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from gatekeeper.v1 import evaluation_pb2
from gatekeeper.v1 import evaluation_service_pb2 as service
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.evaluation import EvaluationContext, EvaluationDetail
from gatekeeper_grpc.domain.limits import (
    MAX_ATTRIBUTES_BYTES,
    MAX_ATTRIBUTES_DEPTH,
    MAX_FLAG_KEYS,
    check_count,
    check_distinct,
    check_key,
    check_user_id,
)
from gatekeeper_grpc.domain.snapshot import Selection

# Answers of a bulk stream stay below 1 MiB, less a little for what frames them.
MAX_RESULTS_BYTES = (1 << 20) - (16 << 10)


def context_from_proto(field: str, message: evaluation_pb2.EvaluationContext) -> EvaluationContext:
    """Convert whom to evaluate for; `InvalidArgument` names the field below `field`."""
    check_user_id(f"{field}.user_id", message.user_id)
    if not message.HasField("attributes"):
        return EvaluationContext(user_id=message.user_id)
    return EvaluationContext(
        user_id=message.user_id, attributes=attributes_from_proto(f"{field}.attributes", message.attributes)
    )


def attributes_from_proto(field: str, message: Struct) -> dict[str, Any]:
    """Convert attributes to JSON values: at most 16 KiB as a message, 5 levels of objects and lists, finite numbers."""
    if message.ByteSize() > MAX_ATTRIBUTES_BYTES:
        raise InvalidArgument.of(
            field, f"must be at most {MAX_ATTRIBUTES_BYTES // 1024} KiB, not {message.ByteSize()} bytes"
        )
    return _struct(field, message, MAX_ATTRIBUTES_DEPTH)


def _struct(field: str, message: Struct, levels: int) -> dict[str, Any]:
    return {name: _value(field, value, levels - 1) for name, value in message.fields.items()}


def _value(field: str, message: Value, levels: int) -> Any:
    """Convert a value that may hold so many levels of lists and objects."""
    kind = message.WhichOneof("kind")
    if kind in ("struct_value", "list_value") and levels == 0:
        raise InvalidArgument.of(field, f"must be nested at most {MAX_ATTRIBUTES_DEPTH} levels deep")
    if kind == "number_value" and not math.isfinite(message.number_value):
        raise InvalidArgument.of(field, "must not hold NaN or an infinite number: JSON has neither")
    if kind == "struct_value":
        return _struct(field, message.struct_value, levels)
    if kind == "list_value":
        return [_value(field, item, levels - 1) for item in message.list_value.values]
    return None if kind in (None, "null_value") else getattr(message, kind)


def check_flag_keys(flag_keys: Sequence[str]) -> None:
    """Check the flags that an evaluation request names: at most 1,000 keys, well-formed, none twice."""
    check_count("flag_keys", flag_keys, at_most=MAX_FLAG_KEYS)
    for position, key in enumerate(flag_keys):
        check_key(f"flag_keys[{position}]", key)
    check_distinct("flag_keys", flag_keys)


def check_min_revision(min_revision: int) -> None:
    """Check a revision that an evaluation request insists on."""
    if min_revision < 0:
        raise InvalidArgument.of("min_revision", "must be a revision, or 0 for any")


def detail_to_proto(detail: EvaluationDetail) -> evaluation_pb2.EvaluationDetail:
    """Convert an answer with its reason."""
    return evaluation_pb2.EvaluationDetail(
        value=detail.value,
        variant=detail.variant,
        reason=evaluation_pb2.Reason.ValueType(detail.reason),
        segment_key=detail.segment_key,
        bucket=detail.bucket,
    )


def header_to_proto(selection: Selection, *, revision: int, stale: bool) -> service.BulkEvaluateFlagsResponse:
    """Convert what holds for a whole bulk stream."""
    return service.BulkEvaluateFlagsResponse(
        header=service.BulkEvaluationHeader(
            flag_keys=[plan.key for plan in selection.plans],
            unknown_flag_keys=selection.unknown_flag_keys,
            revision=revision,
            stale=stale,
        )
    )


def bulk_error_to_proto(user_id: str, error: InvalidArgument) -> service.BulkEvaluationResult:
    """Convert why one context of a bulk message was not evaluated."""
    return service.BulkEvaluationResult(
        user_id=user_id,
        error=service.BulkEvaluationError(
            reason=error.reason, field=error.metadata.get("field", ""), message=str(error)
        ),
    )


def split_results(results: Iterable[service.BulkEvaluationResult]) -> Iterator[service.BulkEvaluateFlagsResponse]:
    """Spread results over messages below 1 MiB, in order; no results: one empty message."""
    response = service.BulkEvaluateFlagsResponse()
    size = 0
    for result in results:
        size += result.ByteSize()
        if size > MAX_RESULTS_BYTES and response.results:
            yield response
            response = service.BulkEvaluateFlagsResponse()
            size = result.ByteSize()
        response.results.append(result)
    yield response
