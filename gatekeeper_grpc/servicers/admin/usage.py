"""AdminService: how flags are used."""

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.limits import check_key
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.usage import unknown_key_to_proto, usage_range_from_proto, usage_to_proto


class UsageRpcs(AdminRpcs):
    """GetFlagUsage, ListUnknownFlagKeys."""

    def GetFlagUsage(self, request: pb.GetFlagUsageRequest, context: grpc.ServicerContext) -> pb.GetFlagUsageResponse:
        check_key("key", request.key)
        return usage_to_proto(self.stores.usage.read(request.key, usage_range_from_proto(request)))

    def ListUnknownFlagKeys(
        self, request: pb.ListUnknownFlagKeysRequest, context: grpc.ServicerContext
    ) -> pb.ListUnknownFlagKeysResponse:
        return pb.ListUnknownFlagKeysResponse(
            unknown_flag_keys=map(unknown_key_to_proto, self.stores.usage.unknown_keys())
        )
