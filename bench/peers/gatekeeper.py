"""Gatekeeper with the flags of `bench.peers`."""

from collections.abc import Sequence

from bench.peers.flags import COUNTRY, NAMED_USERS, OTHERS_PERCENT, ROLLOUT_PERCENT, Flag, Kind
from bench.processes import Metadata
from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1 import flag_pb2, segment_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub

SEGMENT = "country"
_PERCENTS = {Kind.ROLLOUT: ROLLOUT_PERCENT, Kind.ON: 100, Kind.COUNTRY: OTHERS_PERCENT}


def create(admin: AdminServiceStub, flags: Sequence[Flag], metadata: Metadata = ()) -> None:
    """Create the flags, their segment and their targets, as an editor."""
    admin.CreateSegment(pb.CreateSegmentRequest(segment=_segment()), metadata=metadata)
    for flag in flags:
        admin.CreateFlag(pb.CreateFlagRequest(flag=_message(flag)), metadata=metadata)
        if flag.kind is Kind.NAMED:
            targets = pb.AddTargetsRequest(flag_key=flag.key, user_ids=NAMED_USERS, value=True)
            admin.AddTargets(targets, metadata=metadata)


def _segment() -> segment_pb2.Segment:
    condition = segment_pb2.Condition(attribute="country", operator=segment_pb2.CONDITION_OPERATOR_EQUALS)
    condition.values.add(string_value=COUNTRY)
    return segment_pb2.Segment(key=SEGMENT, match=segment_pb2.SEGMENT_MATCH_ALL, conditions=[condition])


def _message(flag: Flag) -> flag_pb2.Flag:
    message = flag_pb2.Flag(
        key=flag.key, enabled=flag.kind is not Kind.DISABLED, rollout_percentage=_PERCENTS.get(flag.kind, 0)
    )
    if flag.kind is Kind.COUNTRY:
        message.segment_targets.add(segment_key=SEGMENT, value=True)
    return message
