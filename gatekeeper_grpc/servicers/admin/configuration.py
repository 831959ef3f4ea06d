"""AdminService: many flags, segments and users at once, as a file describes them."""

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.configuration import applied_change_to_proto, configuration_from_proto
from gatekeeper_grpc.wire.intents import intent_from_proto


class ConfigurationRpcs(AdminRpcs):
    """ApplyConfiguration."""

    def ApplyConfiguration(
        self, request: pb.ApplyConfigurationRequest, context: grpc.ServicerContext
    ) -> pb.ApplyConfigurationResponse:
        wanted = configuration_from_proto(request)
        written = self.stores.configurations.apply(wanted, intent_from_proto(request))
        return pb.ApplyConfigurationResponse(
            changes=map(applied_change_to_proto, written.result.changes),
            apply_id=written.result.apply_id,
            **self._refresh_after(written),
        )
