"""AdminService: API tokens."""

import grpc

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.auth.api_tokens import new_api_token
from gatekeeper_grpc.domain.caller import Role, current_caller
from gatekeeper_grpc.servicers.admin.rpcs import AdminRpcs
from gatekeeper_grpc.wire.admin_users import credential_filter_from_proto
from gatekeeper_grpc.wire.api_tokens import api_token_config_from_proto, api_token_to_proto, check_token_id
from gatekeeper_grpc.wire.intents import intent_from_proto
from gatekeeper_grpc.wire.paging import read_limit


class ApiTokenRpcs(AdminRpcs):
    """CreateApiToken, ListApiTokens, RevokeApiToken."""

    def CreateApiToken(
        self, request: pb.CreateApiTokenRequest, context: grpc.ServicerContext
    ) -> pb.CreateApiTokenResponse:
        maker = current_caller()
        config = api_token_config_from_proto(request, maker)
        intent, new = intent_from_proto(request), new_api_token()
        written = self.stores.api_tokens.create(
            config, maker, token_id=new.token_id, secret=new.secret, secret_hash=new.secret_hash, intent=intent
        )
        self.api_tokens.refresh_after_write()
        return pb.CreateApiTokenResponse(
            api_token=api_token_to_proto(written.result.token),
            secret=written.result.secret,
            **self._refresh_after(written),
        )

    def ListApiTokens(
        self, request: pb.ListApiTokensRequest, context: grpc.ServicerContext
    ) -> pb.ListApiTokensResponse:
        after = self.page_tokens.cursor(request)
        wanted = credential_filter_from_proto(request, current_caller(), after=after, limit=read_limit(request))
        read = self.stores.api_tokens.list(wanted)
        tokens, next_page_token = self.page_tokens.page(
            request, read.result, convert=api_token_to_proto, key=lambda token: token.token_id
        )
        return pb.ListApiTokensResponse(api_tokens=tokens, next_page_token=next_page_token, revision=read.revision)

    def RevokeApiToken(
        self, request: pb.RevokeApiTokenRequest, context: grpc.ServicerContext
    ) -> pb.RevokeApiTokenResponse:
        check_token_id("token_id", request.token_id)
        caller = current_caller()
        owner_id = None if caller.role is Role.ADMIN else caller.admin_id
        written = self.stores.api_tokens.revoke(request.token_id, owner_id=owner_id, intent=intent_from_proto(request))
        self.api_tokens.refresh_after_write()
        return pb.RevokeApiTokenResponse(api_token=api_token_to_proto(written.result), **self._refresh_after(written))
