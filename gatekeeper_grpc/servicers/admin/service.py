"""AdminService, put together from its topics."""

from gatekeeper_grpc.servicers.admin.admin_users import AdminUserRpcs
from gatekeeper_grpc.servicers.admin.api_tokens import ApiTokenRpcs
from gatekeeper_grpc.servicers.admin.audit import AuditRpcs
from gatekeeper_grpc.servicers.admin.client_keys import ClientKeyRpcs
from gatekeeper_grpc.servicers.admin.configuration import ConfigurationRpcs
from gatekeeper_grpc.servicers.admin.erasure import ErasureRpcs
from gatekeeper_grpc.servicers.admin.flags import FlagRpcs
from gatekeeper_grpc.servicers.admin.previews import PreviewRpcs
from gatekeeper_grpc.servicers.admin.segments import SegmentRpcs
from gatekeeper_grpc.servicers.admin.targets import TargetRpcs
from gatekeeper_grpc.servicers.admin.usage import UsageRpcs
from gatekeeper_grpc.servicers.admin.users import UserRpcs


class AdminServicer(
    FlagRpcs,
    PreviewRpcs,
    UsageRpcs,
    TargetRpcs,
    SegmentRpcs,
    AuditRpcs,
    UserRpcs,
    AdminUserRpcs,
    ClientKeyRpcs,
    ApiTokenRpcs,
    ErasureRpcs,
    ConfigurationRpcs,
):
    """All RPCs of AdminService."""
