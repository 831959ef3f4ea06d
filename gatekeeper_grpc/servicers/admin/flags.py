"""The flag RPCs of AdminService: convert, act, refresh, convert."""

import grpc

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceServicer
from gatekeeper_grpc.domain.limits import check_key
from gatekeeper_grpc.servicers.admin.ports import AdminDependencies
from gatekeeper_grpc.wire.audit import anchor_to_proto
from gatekeeper_grpc.wire.flags import (
    flag_config_from_proto,
    flag_filter_from_proto,
    flag_to_proto,
    flag_update_from_proto,
)
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit


class FlagRpcs(AdminServiceServicer):
    """CreateFlag, GetFlag, ListFlags, UpdateFlag, DeleteFlag."""

    ports: AdminDependencies

    def CreateFlag(self, request: pb.CreateFlagRequest, context: grpc.ServicerContext) -> pb.CreateFlagResponse:
        config = flag_config_from_proto(request)
        written = self.ports.flags.create(config, intent_from_proto(request, action="CreateFlag"))
        self.ports.cache.refresh_after_write(written.revision)
        return pb.CreateFlagResponse(
            flag=flag_to_proto(written.result), revision=written.revision, audit_anchor=anchor_to_proto(written.anchor)
        )

    def GetFlag(self, request: pb.GetFlagRequest, context: grpc.ServicerContext) -> pb.GetFlagResponse:
        check_key("key", request.key)
        read = self.ports.flags.get(request.key)
        return pb.GetFlagResponse(flag=flag_to_proto(read.result), revision=read.revision)

    def ListFlags(self, request: pb.ListFlagsRequest, context: grpc.ServicerContext) -> pb.ListFlagsResponse:
        after = self.ports.page_tokens.cursor(request)
        read = self.ports.flags.list(flag_filter_from_proto(request, after=after, limit=read_limit(request)))
        flags, next_page_token = self.ports.page_tokens.page(request, read.result, lambda flag: flag.key)
        return pb.ListFlagsResponse(
            flags=map(flag_to_proto, flags), next_page_token=next_page_token, revision=read.revision
        )

    def UpdateFlag(self, request: pb.UpdateFlagRequest, context: grpc.ServicerContext) -> pb.UpdateFlagResponse:
        update = flag_update_from_proto(request)
        written = self.ports.flags.update(update, intent_from_proto(request, action="UpdateFlag"))
        self.ports.cache.refresh_after_write(written.revision)
        return pb.UpdateFlagResponse(
            flag=flag_to_proto(written.result), revision=written.revision, audit_anchor=anchor_to_proto(written.anchor)
        )

    def DeleteFlag(self, request: pb.DeleteFlagRequest, context: grpc.ServicerContext) -> pb.DeleteFlagResponse:
        check_key("key", request.key)
        written = self.ports.flags.delete(request.key, request.etag, intent_from_proto(request, action="DeleteFlag"))
        self.ports.cache.refresh_after_write(written.revision)
        return pb.DeleteFlagResponse(revision=written.revision, audit_anchor=anchor_to_proto(written.anchor))
