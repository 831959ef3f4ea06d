"""The segment RPCs of AdminService: convert, act, refresh, convert."""

from collections.abc import Iterator

import grpc

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceServicer
from gatekeeper_grpc.domain.limits import check_key
from gatekeeper_grpc.domain.mutation import Written
from gatekeeper_grpc.servicers.admin.message_streams import apply_messages
from gatekeeper_grpc.servicers.admin.ports import AdminDependencies
from gatekeeper_grpc.wire.audit import anchor_to_proto
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


class SegmentRpcs(AdminServiceServicer):
    """CreateSegment, GetSegment, ListSegments, UpdateSegment, DeleteSegment, and the RPCs of their members."""

    ports: AdminDependencies

    def CreateSegment(
        self, request: pb.CreateSegmentRequest, context: grpc.ServicerContext
    ) -> pb.CreateSegmentResponse:
        config = segment_config_from_proto(request)
        written = self.ports.segments.create(config, intent_from_proto(request, action="CreateSegment"))
        self.ports.cache.refresh_after_write(written.revision)
        return pb.CreateSegmentResponse(
            segment=segment_to_proto(written.result),
            revision=written.revision,
            audit_anchor=anchor_to_proto(written.anchor),
        )

    def GetSegment(self, request: pb.GetSegmentRequest, context: grpc.ServicerContext) -> pb.GetSegmentResponse:
        check_key("key", request.key)
        read = self.ports.segments.get(request.key)
        return pb.GetSegmentResponse(segment=segment_to_proto(read.result), revision=read.revision)

    def ListSegments(self, request: pb.ListSegmentsRequest, context: grpc.ServicerContext) -> pb.ListSegmentsResponse:
        after = self.ports.page_tokens.cursor(request)
        read = self.ports.segments.list(segment_filter_from_proto(request, after=after, limit=read_limit(request)))
        segments, next_page_token = self.ports.page_tokens.page(
            request, read.result, lambda counted: counted.segment.key
        )
        return pb.ListSegmentsResponse(
            segments=map(segment_to_proto, segments), next_page_token=next_page_token, revision=read.revision
        )

    def UpdateSegment(
        self, request: pb.UpdateSegmentRequest, context: grpc.ServicerContext
    ) -> pb.UpdateSegmentResponse:
        update = segment_update_from_proto(request)
        written = self.ports.segments.update(update, intent_from_proto(request, action="UpdateSegment"))
        self.ports.cache.refresh_after_write(written.revision)
        return pb.UpdateSegmentResponse(
            segment=segment_to_proto(written.result),
            revision=written.revision,
            audit_anchor=anchor_to_proto(written.anchor),
        )

    def DeleteSegment(
        self, request: pb.DeleteSegmentRequest, context: grpc.ServicerContext
    ) -> pb.DeleteSegmentResponse:
        check_key("key", request.key)
        intent = intent_from_proto(request, action="DeleteSegment")
        written = self.ports.segments.delete(request.key, request.etag, intent)
        self.ports.cache.refresh_after_write(written.revision)
        return pb.DeleteSegmentResponse(revision=written.revision, audit_anchor=anchor_to_proto(written.anchor))

    def AddSegmentMembers(
        self, request_iterator: Iterator[pb.AddSegmentMembersRequest], context: grpc.ServicerContext
    ) -> pb.AddSegmentMembersResponse:
        return apply_messages(
            request_iterator,
            self._add_members,
            pb.AddSegmentMembersResponse(),
            cache=self.ports.cache,
            current_revision=self.ports.members.revision,
        )

    def _add_members(
        self, request: pb.AddSegmentMembersRequest, response: pb.AddSegmentMembersResponse
    ) -> Written[int]:
        """Apply one message and add what it did to `response`."""
        edit = members_from_proto(request)
        written = self.ports.members.add(edit, intent_from_proto(request, action="AddSegmentMembers"))
        response.added_count += written.result
        return written

    def RemoveSegmentMembers(
        self, request: pb.RemoveSegmentMembersRequest, context: grpc.ServicerContext
    ) -> pb.RemoveSegmentMembersResponse:
        edit = members_removal_from_proto(request)
        written = self.ports.members.remove(edit, intent_from_proto(request, action="RemoveSegmentMembers"))
        self.ports.cache.refresh_after_write(written.revision)
        return pb.RemoveSegmentMembersResponse(
            revision=written.revision, removed_count=written.result, audit_anchor=anchor_to_proto(written.anchor)
        )

    def ListSegmentMembers(
        self, request: pb.ListSegmentMembersRequest, context: grpc.ServicerContext
    ) -> pb.ListSegmentMembersResponse:
        check_key("segment_key", request.segment_key)
        after = self.ports.page_tokens.cursor(request)
        read = self.ports.members.list(request.segment_key, after=after, limit=read_limit(request))
        user_ids, next_page_token = self.ports.page_tokens.page(request, read.result, str)
        return pb.ListSegmentMembersResponse(user_ids=user_ids, next_page_token=next_page_token, revision=read.revision)
