"""AdminService: flags."""

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.limits import check_key
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.flags import (
    flag_config_from_proto,
    flag_filter_from_proto,
    flag_to_proto,
    flag_update_from_proto,
)
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit


class FlagRpcs(AdminRpcs):
    """CreateFlag, GetFlag, ListFlags, UpdateFlag, DeleteFlag."""

    def CreateFlag(self, request: pb.CreateFlagRequest, context: grpc.ServicerContext) -> pb.CreateFlagResponse:
        config = flag_config_from_proto(request)
        written = self.stores.flags.create(config, intent_from_proto(request))
        return pb.CreateFlagResponse(flag=flag_to_proto(written.result), **self._refresh_after(written))

    def GetFlag(self, request: pb.GetFlagRequest, context: grpc.ServicerContext) -> pb.GetFlagResponse:
        check_key("key", request.key)
        read = self.stores.flags.get(request.key)
        return pb.GetFlagResponse(flag=flag_to_proto(read.result), revision=read.revision)

    def ListFlags(self, request: pb.ListFlagsRequest, context: grpc.ServicerContext) -> pb.ListFlagsResponse:
        after = self.page_tokens.cursor(request)
        read = self.stores.flags.list(flag_filter_from_proto(request, after=after, limit=read_limit(request)))
        flags, next_page_token = self.page_tokens.page(
            request, read.result, convert=flag_to_proto, key=lambda flag: flag.key
        )
        return pb.ListFlagsResponse(flags=flags, next_page_token=next_page_token, revision=read.revision)

    def UpdateFlag(self, request: pb.UpdateFlagRequest, context: grpc.ServicerContext) -> pb.UpdateFlagResponse:
        update = flag_update_from_proto(request)
        written = self.stores.flags.update(update, intent_from_proto(request))
        return pb.UpdateFlagResponse(flag=flag_to_proto(written.result), **self._refresh_after(written))

    def DeleteFlag(self, request: pb.DeleteFlagRequest, context: grpc.ServicerContext) -> pb.DeleteFlagResponse:
        check_key("key", request.key)
        written = self.stores.flags.delete(request.key, request.etag, intent_from_proto(request))
        return pb.DeleteFlagResponse(**self._refresh_after(written))
