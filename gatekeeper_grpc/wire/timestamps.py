"""Times, between aware datetimes and messages."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper_grpc.domain.errors import InvalidArgument


def time_to_proto(time: datetime | None) -> Timestamp | None:
    """Convert an aware time; None stays None, which leaves the field absent."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message


def time_from_proto(field: str, message: Timestamp) -> datetime:
    """Convert to a time in UTC.

    Raises:
        InvalidArgument: Outside the years 1 to 9999; names `field`.
    """
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument.of(field, "must be a time of the years 1 to 9999") from None
