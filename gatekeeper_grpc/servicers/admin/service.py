"""AdminService, put together from its topics."""

from gatekeeper_grpc.servicers.admin.flags import FlagRpcs
from gatekeeper_grpc.servicers.admin.ports import AdminPorts
from gatekeeper_grpc.servicers.admin.targets import TargetRpcs


class AdminServicer(FlagRpcs, TargetRpcs):
    """All RPCs of AdminService."""

    def __init__(self, ports: AdminPorts) -> None:
        self.ports = ports
