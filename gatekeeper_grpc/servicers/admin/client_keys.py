"""The client key RPCs of AdminService: convert, act, refresh, convert."""

import grpc

from gatekeeper.v1 import admin_service_pb2 as pb
from gatekeeper.v1.admin_service_pb2_grpc import AdminServiceServicer
from gatekeeper_grpc.auth.client_keys import new_client_secret, new_key_id
from gatekeeper_grpc.servicers.admin.ports import AdminDependencies
from gatekeeper_grpc.wire.audit import anchor_to_proto
from gatekeeper_grpc.wire.client_keys import check_key_id, client_key_config_from_proto, client_key_to_proto
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit


class ClientKeyRpcs(AdminServiceServicer):
    """CreateClientKey, ListClientKeys, RevokeClientKey."""

    ports: AdminDependencies

    def CreateClientKey(
        self, request: pb.CreateClientKeyRequest, context: grpc.ServicerContext
    ) -> pb.CreateClientKeyResponse:
        config = client_key_config_from_proto(request)
        intent = intent_from_proto(request, action="CreateClientKey")
        written = self.ports.client_keys.create(config, key_id=new_key_id(), secret=new_client_secret(), intent=intent)
        self.ports.live_client_keys.refresh_after_write()
        self.ports.cache.refresh_after_write(written.revision)
        return pb.CreateClientKeyResponse(
            client_key=client_key_to_proto(written.result.key),
            secret=written.result.secret,
            revision=written.revision,
            audit_anchor=anchor_to_proto(written.anchor),
        )

    def ListClientKeys(
        self, request: pb.ListClientKeysRequest, context: grpc.ServicerContext
    ) -> pb.ListClientKeysResponse:
        after = self.ports.page_tokens.cursor(request)
        read = self.ports.client_keys.list(after=after, limit=read_limit(request))
        keys, next_page_token = self.ports.page_tokens.page(request, read.result, lambda key: key.key_id)
        return pb.ListClientKeysResponse(
            client_keys=map(client_key_to_proto, keys), next_page_token=next_page_token, revision=read.revision
        )

    def RevokeClientKey(
        self, request: pb.RevokeClientKeyRequest, context: grpc.ServicerContext
    ) -> pb.RevokeClientKeyResponse:
        check_key_id("key_id", request.key_id)
        written = self.ports.client_keys.revoke(request.key_id, intent_from_proto(request, action="RevokeClientKey"))
        self.ports.live_client_keys.refresh_after_write()
        self.ports.cache.refresh_after_write(written.revision)
        return pb.RevokeClientKeyResponse(
            client_key=client_key_to_proto(written.result),
            revision=written.revision,
            audit_anchor=anchor_to_proto(written.anchor),
        )
