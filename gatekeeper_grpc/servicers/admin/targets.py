"""The target RPCs of AdminService: convert, act, refresh, convert."""

from collections.abc import Iterator

import grpc

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceServicer
from gatekeeper_grpc.domain.commands import TargetEditResult
from gatekeeper_grpc.domain.limits import check_key
from gatekeeper_grpc.domain.mutation import Written
from gatekeeper_grpc.servicers.admin.message_streams import apply_messages
from gatekeeper_grpc.servicers.admin.ports import AdminDependencies
from gatekeeper_grpc.wire.audit import anchor_to_proto
from gatekeeper_grpc.wire.flags import target_to_proto, targets_from_proto, targets_removal_from_proto
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit


class TargetRpcs(AdminServiceServicer):
    """AddTargets, RemoveTargets, ListTargets, ImportTargets."""

    ports: AdminDependencies

    def AddTargets(self, request: pb.AddTargetsRequest, context: grpc.ServicerContext) -> pb.AddTargetsResponse:
        edit = targets_from_proto(request)
        written = self.ports.targets.edit(edit, intent_from_proto(request, action="AddTargets"))
        self.ports.cache.refresh_after_write(written.revision)
        done = written.result
        return pb.AddTargetsResponse(
            revision=written.revision,
            added_count=done.added_count,
            moved_count=done.moved_count,
            audit_anchor=anchor_to_proto(written.anchor),
        )

    def RemoveTargets(
        self, request: pb.RemoveTargetsRequest, context: grpc.ServicerContext
    ) -> pb.RemoveTargetsResponse:
        edit = targets_removal_from_proto(request)
        written = self.ports.targets.edit(edit, intent_from_proto(request, action="RemoveTargets"))
        self.ports.cache.refresh_after_write(written.revision)
        return pb.RemoveTargetsResponse(
            revision=written.revision,
            removed_count=written.result.removed_count,
            audit_anchor=anchor_to_proto(written.anchor),
        )

    def ListTargets(self, request: pb.ListTargetsRequest, context: grpc.ServicerContext) -> pb.ListTargetsResponse:
        check_key("flag_key", request.flag_key)
        after = self.ports.page_tokens.cursor(request)
        read = self.ports.targets.list(request.flag_key, after=after, limit=read_limit(request))
        targets, next_page_token = self.ports.page_tokens.page(request, read.result, lambda target: target.user_id)
        return pb.ListTargetsResponse(
            targets=map(target_to_proto, targets), next_page_token=next_page_token, revision=read.revision
        )

    def ImportTargets(
        self, request_iterator: Iterator[pb.ImportTargetsRequest], context: grpc.ServicerContext
    ) -> pb.ImportTargetsResponse:
        return apply_messages(
            request_iterator,
            self._import,
            pb.ImportTargetsResponse(),
            cache=self.ports.cache,
            current_revision=self.ports.targets.revision,
        )

    def _import(
        self, request: pb.ImportTargetsRequest, response: pb.ImportTargetsResponse
    ) -> Written[TargetEditResult]:
        """Apply one message and add what it did to `response`."""
        edit = targets_from_proto(request)
        written = self.ports.targets.edit(edit, intent_from_proto(request, action="ImportTargets"))
        response.added_count += written.result.added_count
        response.moved_count += written.result.moved_count
        return written
