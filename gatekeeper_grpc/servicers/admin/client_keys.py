"""AdminService: client keys."""

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.auth.client_keys import new_client_key
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.client_keys import check_key_id, client_key_config_from_proto, client_key_to_proto
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit


class ClientKeyRpcs(AdminRpcs):
    """CreateClientKey, ListClientKeys, RevokeClientKey."""

    def CreateClientKey(
        self, request: pb.CreateClientKeyRequest, context: grpc.ServicerContext
    ) -> pb.CreateClientKeyResponse:
        config = client_key_config_from_proto(request)
        intent, new = intent_from_proto(request), new_client_key(config.type)
        written = self.stores.client_keys.create(
            config, key_id=new.key_id, secret=new.secret, kept=new.kept, intent=intent
        )
        self.client_keys.refresh_after_write()
        return pb.CreateClientKeyResponse(
            client_key=client_key_to_proto(written.result.key),
            secret=written.result.secret,
            **self._refresh_after(written),
        )

    def ListClientKeys(
        self, request: pb.ListClientKeysRequest, context: grpc.ServicerContext
    ) -> pb.ListClientKeysResponse:
        after = self.page_tokens.cursor(request)
        read = self.stores.client_keys.list(after=after, limit=read_limit(request))
        keys, next_page_token = self.page_tokens.page(
            request, read.result, convert=client_key_to_proto, key=lambda key: key.key_id
        )
        return pb.ListClientKeysResponse(client_keys=keys, next_page_token=next_page_token, revision=read.revision)

    def RevokeClientKey(
        self, request: pb.RevokeClientKeyRequest, context: grpc.ServicerContext
    ) -> pb.RevokeClientKeyResponse:
        check_key_id("key_id", request.key_id)
        written = self.stores.client_keys.revoke(request.key_id, intent_from_proto(request))
        self.client_keys.refresh_after_write()
        return pb.RevokeClientKeyResponse(
            client_key=client_key_to_proto(written.result), **self._refresh_after(written)
        )
