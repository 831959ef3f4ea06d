"""Times on the wire."""

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.wire.timestamps import time_from_proto, time_to_proto

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)


def test_a_time_survives_the_message() -> None:
    message = time_to_proto(NOW)

    assert message is not None
    assert time_from_proto("time", message) == NOW


def test_no_time_is_an_absent_field() -> None:
    assert time_to_proto(None) is None


@pytest.mark.parametrize("seconds", [-62_135_596_801, 253_402_300_800, 2**63 - 1])
def test_a_time_outside_the_years_1_to_9999_is_refused(seconds: int) -> None:
    with pytest.raises(InvalidArgument, match="expire_time must be a time of the years 1 to 9999"):
        time_from_proto("expire_time", Timestamp(seconds=seconds))
