"""AdminService: targets."""

from collections.abc import Iterator

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.commands import TargetEditResult
from gatekeeper_grpc.domain.limits import check_key
from gatekeeper_grpc.domain.mutation import Written
from gatekeeper_grpc.servicers.admin.message_streams import apply_messages
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.flags import target_to_proto, targets_from_proto, targets_removal_from_proto
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit


class TargetRpcs(AdminRpcs):
    """AddTargets, RemoveTargets, ListTargets, ImportTargets."""

    def AddTargets(self, request: pb.AddTargetsRequest, context: grpc.ServicerContext) -> pb.AddTargetsResponse:
        edit = targets_from_proto(request)
        written = self.stores.targets.edit(edit, intent_from_proto(request))
        done = written.result
        return pb.AddTargetsResponse(
            added_count=done.added_count, moved_count=done.moved_count, **self._refresh_after(written)
        )

    def RemoveTargets(
        self, request: pb.RemoveTargetsRequest, context: grpc.ServicerContext
    ) -> pb.RemoveTargetsResponse:
        edit = targets_removal_from_proto(request)
        written = self.stores.targets.edit(edit, intent_from_proto(request))
        return pb.RemoveTargetsResponse(removed_count=written.result.removed_count, **self._refresh_after(written))

    def ListTargets(self, request: pb.ListTargetsRequest, context: grpc.ServicerContext) -> pb.ListTargetsResponse:
        check_key("flag_key", request.flag_key)
        after = self.page_tokens.cursor(request)
        paged = self.page_tokens.paged(request, convert=target_to_proto, key=lambda target: target.user_id)
        read = self.stores.targets.list(request.flag_key, paged, after=after, limit=read_limit(request))
        targets, next_page_token = read.result
        return pb.ListTargetsResponse(targets=targets, next_page_token=next_page_token, revision=read.revision)

    def ImportTargets(
        self, request_iterator: Iterator[pb.ImportTargetsRequest], context: grpc.ServicerContext
    ) -> pb.ImportTargetsResponse:
        return apply_messages(
            request_iterator,
            self._import,
            pb.ImportTargetsResponse(),
            refresher=self.refresher,
            current_revision=self.stores.current_revision,
        )

    def _import(
        self, request: pb.ImportTargetsRequest, response: pb.ImportTargetsResponse
    ) -> Written[TargetEditResult]:
        """Apply one message and add what it did to `response`."""
        edit = targets_from_proto(request)
        written = self.stores.targets.edit(edit, intent_from_proto(request))
        response.added_count += written.result.added_count
        response.moved_count += written.result.moved_count
        return written
