"""The RPCs of AdminService about a person's rights: convert, act, refresh, convert."""

from collections.abc import Iterator

import grpc

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceServicer
from gatekeeper_grpc.domain.limits import check_user_id
from gatekeeper_grpc.servicers.admin.ports import AdminDependencies
from gatekeeper_grpc.wire.audit import anchor_to_proto
from gatekeeper_grpc.wire.erasure import export_to_proto
from gatekeeper_grpc.wire.intents import intent_from_proto


class ErasureRpcs(AdminServiceServicer):
    """ExportUserData, EraseUser."""

    ports: AdminDependencies

    def ExportUserData(
        self, request: pb.ExportUserDataRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportUserDataResponse]:
        check_user_id("user_id", request.user_id)
        return map(export_to_proto, self.ports.exports.export(request.user_id))

    def EraseUser(self, request: pb.EraseUserRequest, context: grpc.ServicerContext) -> pb.EraseUserResponse:
        check_user_id("user_id", request.user_id)
        written = self.ports.erasures.erase(request.user_id, intent_from_proto(request, action="EraseUser"))
        self.ports.cache.refresh_after_write(written.revision)
        erased = written.result
        return pb.EraseUserResponse(
            revision=written.revision,
            targets_removed=erased.targets_removed,
            memberships_removed=erased.memberships_removed,
            documents_redacted=erased.documents_redacted,
            audit_anchor=anchor_to_proto(written.anchor),
        )
