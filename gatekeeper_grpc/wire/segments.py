"""Segments and their members, between domain types and messages."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import segment_pb2
from gatekeeper_grpc.domain.commands import MemberEdit, SegmentFilter, SegmentUpdate
from gatekeeper_grpc.domain.condition import MAX_VALUES, Condition, Operator, check_not_for_everybody
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import (
    MAX_IDS_PER_STREAM_MESSAGE,
    MAX_MEMBERS_PER_CALL,
    check_count,
    check_each_visible,
    check_key,
    check_text,
    check_user_ids,
    check_visible,
)
from gatekeeper_grpc.domain.segment import MAX_CONDITIONS, CountedSegment, Match, SegmentConfig, violations_under
from gatekeeper_grpc.wire.json import value_from_proto, value_to_proto
from gatekeeper_grpc.wire.masks import changes_from_mask
from gatekeeper_grpc.wire.timestamps import time_to_proto

_MATCHES: Mapping[int, Match] = MappingProxyType(
    {
        segment_pb2.SEGMENT_MATCH_UNSPECIFIED: Match.ALL,
        **{segment_pb2.SegmentMatch.Value(f"SEGMENT_MATCH_{match.value}"): match for match in Match},
    }
)
_OPERATORS: Mapping[int, Operator] = MappingProxyType(
    {segment_pb2.ConditionOperator.Value(f"CONDITION_OPERATOR_{operator.value}"): operator for operator in Operator}
)


def segment_to_proto(counted: CountedSegment) -> segment_pb2.Segment:
    """Convert a segment; one that is not stored (revision 0) has no etag."""
    segment, config = counted.segment, counted.segment.config
    return segment_pb2.Segment(
        key=config.key,
        description=config.description,
        match=segment_pb2.SegmentMatch.Value(f"SEGMENT_MATCH_{config.match.value}"),
        conditions=map(_condition_to_proto, config.conditions),
        member_count=counted.member_count,
        create_time=time_to_proto(segment.create_time),
        update_time=time_to_proto(segment.update_time),
        etag=segment.etag if segment.revision else "",
        revision=segment.revision,
    )


def _condition_to_proto(condition: Condition) -> segment_pb2.Condition:
    return segment_pb2.Condition(
        attribute=condition.attribute,
        operator=segment_pb2.ConditionOperator.Value(f"CONDITION_OPERATOR_{condition.operator.value}"),
        values=map(value_to_proto, condition.values),
        negate=condition.negate,
    )


def segment_config_from_proto(request: admin.CreateSegmentRequest) -> SegmentConfig:
    """Convert a new segment; fields that the server decides are ignored.

    Raises:
        InvalidArgument: A field is invalid.
    """
    return segment_config_of(request.segment)


def segment_config_of(segment: segment_pb2.Segment) -> SegmentConfig:
    """Convert what an editor decides of a segment.

    Raises:
        InvalidArgument: A field is invalid; names it as "segment.<name>".
    """
    return SegmentConfig(key=segment.key, **{field: read(segment) for field, read in _READERS.items()})


def segment_update_from_proto(request: admin.UpdateSegmentRequest) -> SegmentUpdate:
    """Convert an update.

    Raises:
        InvalidArgument: As `changes_from_mask`, or the key or a new value is invalid.
    """
    changes = changes_from_mask(request.update_mask, request.segment, _READERS)
    check_key("segment.key", request.segment.key)
    return SegmentUpdate(key=request.segment.key, etag=request.segment.etag, changes=changes)


def _match(segment: segment_pb2.Segment) -> Match:
    if segment.match not in _MATCHES:
        raise InvalidArgument.of("segment.match", f"is {segment.match}, which this server does not know")
    return _MATCHES[segment.match]


def _conditions(segment: segment_pb2.Segment) -> tuple[Condition, ...]:
    # Counted before they are converted: a message can hold half a million of them.
    check_count("segment.conditions", segment.conditions, at_most=MAX_CONDITIONS)
    return tuple(
        _condition(f"segment.conditions[{position}]", condition)
        for position, condition in enumerate(segment.conditions)
    )


def _condition(path: str, condition: segment_pb2.Condition) -> Condition:
    if condition.operator not in _OPERATORS:
        raise InvalidArgument.of(f"{path}.operator", "is required, and must be one that this server knows")
    check_count(f"{path}.values", condition.values, at_most=MAX_VALUES)
    values = [value_from_proto(f"{path}.values[{position}]", value) for position, value in enumerate(condition.values)]
    check_visible(f"{path}.attribute", condition.attribute)
    with violations_under(path):
        check_not_for_everybody(_OPERATORS[condition.operator], values)
        return Condition(
            attribute=condition.attribute,
            operator=_OPERATORS[condition.operator],
            values=tuple(values),
            negate=condition.negate,
        )


# Reads the fields that an editor decides. Message and domain call them the same.
_READERS: Mapping[str, Callable[[segment_pb2.Segment], Any]] = MappingProxyType(
    {
        "description": lambda segment: segment.description,
        "match": _match,
        "conditions": _conditions,
    }
)


def segment_filter_from_proto(request: admin.ListSegmentsRequest, *, after: str, limit: int) -> SegmentFilter:
    """Convert the filter of a list.

    Raises:
        InvalidArgument: The prefix is too long.
    """
    check_text("key_prefix", request.key_prefix, at_most=128)
    return SegmentFilter(after=after, limit=limit, key_prefix=request.key_prefix)


def members_from_proto(request: admin.AddSegmentMembersRequest) -> MemberEdit:
    """Convert users to add as members.

    Raises:
        InvalidArgument: The key or a user id is invalid, or there are too many.
    """
    edit = _member_edit(request, at_most=MAX_IDS_PER_STREAM_MESSAGE)
    check_each_visible("user_ids", edit.user_ids)
    return edit


def members_removal_from_proto(request: admin.RemoveSegmentMembersRequest) -> MemberEdit:
    """Convert users to remove from the members.

    Raises:
        InvalidArgument: The key or a user id is invalid, or there are too many.
    """
    return _member_edit(request, at_most=MAX_MEMBERS_PER_CALL)


def _member_edit(
    request: admin.AddSegmentMembersRequest | admin.RemoveSegmentMembersRequest, *, at_most: int
) -> MemberEdit:
    check_key("segment_key", request.segment_key)
    check_user_ids("user_ids", request.user_ids, at_most=at_most)
    return MemberEdit(segment_key=request.segment_key, user_ids=tuple(request.user_ids), etag=request.etag)
