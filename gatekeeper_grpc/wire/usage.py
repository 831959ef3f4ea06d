"""Usage of flags, between domain types and messages."""

from typing import Final

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import evaluation_pb2, usage_pb2
from gatekeeper_grpc.domain.commands import UsageRange
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.usage import DecisionCount, UnknownKey, UsageSeries
from gatekeeper_grpc.wire.timestamps import time_from_proto, time_to_proto

_BY_DAY: Final = {
    usage_pb2.USAGE_STEP_UNSPECIFIED: False,
    usage_pb2.USAGE_STEP_HOUR: False,
    usage_pb2.USAGE_STEP_DAY: True,
}


def usage_range_from_proto(request: admin.GetFlagUsageRequest) -> UsageRange:
    """Convert which part of a series is wanted.

    Raises:
        InvalidArgument: The step is unknown, a time is out of range, or the end is not after the start.
    """
    if request.step not in _BY_DAY:
        raise InvalidArgument.of("step", "must be USAGE_STEP_HOUR or USAGE_STEP_DAY")
    start = time_from_proto("start_time", request.start_time) if request.HasField("start_time") else None
    end = time_from_proto("end_time", request.end_time) if request.HasField("end_time") else None
    if start is not None and end is not None and end <= start:
        raise InvalidArgument.of("end_time", "must be after start_time")
    return UsageRange(by_day=_BY_DAY[request.step], start_time=start, end_time=end)


def usage_to_proto(series: UsageSeries) -> admin.GetFlagUsageResponse:
    """Convert how a flag was used."""
    return admin.GetFlagUsageResponse(
        usage=[
            usage_pb2.FlagUsage(start_time=time_to_proto(start), counts=map(_count_to_proto, counts))
            for start, counts in series.periods.items()
        ],
        last_named_time=time_to_proto(series.named_time),
        last_all_time=time_to_proto(series.all_flags_time),
        counted_since=time_to_proto(series.counted_since),
    )


def _count_to_proto(count: DecisionCount) -> usage_pb2.DecisionCount:
    return usage_pb2.DecisionCount(
        asked_for=usage_pb2.ASKED_FOR_NAMED if count.named else usage_pb2.ASKED_FOR_ALL,
        variant=count.variant,
        reason=evaluation_pb2.Reason.ValueType(count.reason),
        decisions=count.amount.decisions,
        estimated_decisions=count.amount.estimated,
    )


def unknown_key_to_proto(unknown: UnknownKey) -> usage_pb2.UnknownFlagKey:
    """Convert a key that no flag has."""
    return usage_pb2.UnknownFlagKey(
        key=unknown.key,
        request_count=unknown.requests,
        last_asked_time=time_to_proto(unknown.last_asked_time),
    )
