"""AdminService: export and erasure of what is held about a person."""

from collections.abc import Iterator

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.limits import check_user_id
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.erasure import export_to_proto
from gatekeeper_grpc.wire.intents import intent_from_proto


class ErasureRpcs(AdminRpcs):
    """ExportUserData, EraseUser."""

    def ExportUserData(
        self, request: pb.ExportUserDataRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportUserDataResponse]:
        check_user_id("user_id", request.user_id)
        return map(export_to_proto, self.stores.exports.export(request.user_id))

    def EraseUser(self, request: pb.EraseUserRequest, context: grpc.ServicerContext) -> pb.EraseUserResponse:
        check_user_id("user_id", request.user_id)
        written = self.stores.erasures.erase(request.user_id, intent_from_proto(request))
        erased = written.result
        return pb.EraseUserResponse(
            targets_removed=erased.targets_removed,
            memberships_removed=erased.memberships_removed,
            documents_redacted=erased.documents_redacted,
            **self._refresh_after(written),
        )
