"""Export of what is held about a person, from domain types to messages."""

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_grpc.domain.erasure import ExportedTarget, ExportedUser, ExportPart
from gatekeeper_grpc.domain.flag import ON
from gatekeeper_grpc.domain.mutation import Read
from gatekeeper_grpc.wire.audit import entry_to_proto
from gatekeeper_grpc.wire.users import user_to_proto


def export_to_proto(read: Read[ExportPart]) -> admin.ExportUserDataResponse:
    """Convert a part of an export."""
    part, response = read.result, admin.ExportUserDataResponse(revision=read.revision)
    if isinstance(part, ExportedUser):
        response.user.CopyFrom(_exported_user_to_proto(part))
    elif not isinstance(part, list):
        response.audit_entry.CopyFrom(entry_to_proto(part))
    for item in part if isinstance(part, list) else ():
        if isinstance(item, ExportedTarget):
            response.targets.targets.add(flag_key=item.flag_key, value=item.variant == ON)
        else:
            response.memberships.segment_keys.append(item.segment_key)
    return response


def _exported_user_to_proto(exported: ExportedUser) -> admin.ExportedUser:
    return admin.ExportedUser(
        user_id=exported.user_id,
        subject_id="" if exported.subject_id is None else str(exported.subject_id),
        user=user_to_proto(exported.user) if exported.user else None,
        named_by_segments=exported.named_by,
    )
