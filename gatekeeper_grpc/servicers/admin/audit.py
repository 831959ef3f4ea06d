"""AdminService: the audit log."""

from collections.abc import Iterator

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.errors import FailedPrecondition
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.audit import (
    anchor_from_proto,
    audit_filter_from_proto,
    checkpoint_to_proto,
    entry_to_proto,
    verification_to_proto,
)
from gatekeeper_grpc.wire.paging import read_limit


class AuditRpcs(AdminRpcs):
    """ListAuditEntries, VerifyAuditLog, GetAuditCheckpoint."""

    def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: grpc.ServicerContext
    ) -> pb.ListAuditEntriesResponse:
        cursor = self.page_tokens.cursor(request)
        wanted = audit_filter_from_proto(request, cursor=cursor, limit=read_limit(request))
        paged = self.page_tokens.paged(
            request, convert=entry_to_proto, key=lambda documented: str(documented.entry.seq)
        )
        entries, next_page_token = self.stores.audit.list(wanted, paged)
        return pb.ListAuditEntriesResponse(audit_entries=entries, next_page_token=next_page_token)

    def VerifyAuditLog(
        self, request: pb.VerifyAuditLogRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.VerifyAuditLogResponse]:
        for report in self.stores.audit.verify(anchor_from_proto(request)):
            yield verification_to_proto(report)

    def GetAuditCheckpoint(
        self, request: pb.GetAuditCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.GetAuditCheckpointResponse:
        head = self.stores.audit.head()
        if self.audit_signer is None:
            raise FailedPrecondition(
                "this server has no key to sign checkpoints with: set GATEKEEPER_AUDIT_SIGNING_KEY",
                reason="AUDIT_SIGNING_KEY_MISSING",
            )
        checkpoint = self.audit_signer.sign(head)
        return pb.GetAuditCheckpointResponse(checkpoint=checkpoint_to_proto(checkpoint))
