"""AdminService: segments."""

from collections.abc import Callable, Iterator
from operator import attrgetter

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.erasure import Subject
from gatekeeper_grpc.domain.limits import check_key
from gatekeeper_grpc.domain.mutation import Written
from gatekeeper_grpc.servicers.admin.message_streams import apply_messages
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit
from gatekeeper_grpc.wire.segments import (
    members_from_proto,
    members_removal_from_proto,
    segment_config_from_proto,
    segment_filter_from_proto,
    segment_to_proto,
    segment_update_from_proto,
)


class SegmentRpcs(AdminRpcs):
    """CreateSegment, GetSegment, ListSegments, UpdateSegment, DeleteSegment, and the RPCs of their members."""

    def CreateSegment(
        self, request: pb.CreateSegmentRequest, context: grpc.ServicerContext
    ) -> pb.CreateSegmentResponse:
        config = segment_config_from_proto(request)
        written = self.stores.segments.create(config, intent_from_proto(request))
        return pb.CreateSegmentResponse(segment=segment_to_proto(written.result), **self._refresh_after(written))

    def GetSegment(self, request: pb.GetSegmentRequest, context: grpc.ServicerContext) -> pb.GetSegmentResponse:
        check_key("key", request.key)
        read = self.stores.segments.get(request.key)
        return pb.GetSegmentResponse(segment=segment_to_proto(read.result), revision=read.revision)

    def ListSegments(self, request: pb.ListSegmentsRequest, context: grpc.ServicerContext) -> pb.ListSegmentsResponse:
        after = self.page_tokens.cursor(request)
        wanted = segment_filter_from_proto(request, after=after, limit=read_limit(request))
        paged = self.page_tokens.paged(request, convert=segment_to_proto, key=lambda counted: counted.segment.key)
        read = self.stores.segments.list(wanted, paged)
        segments, next_page_token = read.result
        return pb.ListSegmentsResponse(segments=segments, next_page_token=next_page_token, revision=read.revision)

    def UpdateSegment(
        self, request: pb.UpdateSegmentRequest, context: grpc.ServicerContext
    ) -> pb.UpdateSegmentResponse:
        update = segment_update_from_proto(request)
        written = self.stores.segments.update(update, intent_from_proto(request))
        return pb.UpdateSegmentResponse(segment=segment_to_proto(written.result), **self._refresh_after(written))

    def DeleteSegment(
        self, request: pb.DeleteSegmentRequest, context: grpc.ServicerContext
    ) -> pb.DeleteSegmentResponse:
        check_key("key", request.key)
        intent = intent_from_proto(request)
        written = self.stores.segments.delete(request.key, request.etag, intent)
        return pb.DeleteSegmentResponse(**self._refresh_after(written))

    def AddSegmentMembers(
        self, request_iterator: Iterator[pb.AddSegmentMembersRequest], context: grpc.ServicerContext
    ) -> pb.AddSegmentMembersResponse:
        return apply_messages(
            request_iterator,
            self._add_members,
            pb.AddSegmentMembersResponse(),
            refresher=self.refresher,
            current_revision=self.stores.current_revision,
        )

    def _add_members(
        self, request: pb.AddSegmentMembersRequest, response: pb.AddSegmentMembersResponse
    ) -> Written[int]:
        """Apply one message and add what it did to `response`."""
        edit = members_from_proto(request)
        written = self.stores.members.add(edit, intent_from_proto(request))
        response.added_count += written.result
        return written

    def RemoveSegmentMembers(
        self, request: pb.RemoveSegmentMembersRequest, context: grpc.ServicerContext
    ) -> pb.RemoveSegmentMembersResponse:
        edit = members_removal_from_proto(request)
        written = self.stores.members.remove(edit, intent_from_proto(request))
        return pb.RemoveSegmentMembersResponse(removed_count=written.result, **self._refresh_after(written))

    def ListSegmentMembers(
        self, request: pb.ListSegmentMembersRequest, context: grpc.ServicerContext
    ) -> pb.ListSegmentMembersResponse:
        check_key("segment_key", request.segment_key)
        after = self.page_tokens.cursor(request)
        user_id: Callable[[Subject], str] = attrgetter("user_id")
        paged = self.page_tokens.paged(request, convert=user_id, key=user_id)
        read = self.stores.members.list(request.segment_key, paged, after=after, limit=read_limit(request))
        user_ids, next_page_token = read.result
        return pb.ListSegmentMembersResponse(user_ids=user_ids, next_page_token=next_page_token, revision=read.revision)
