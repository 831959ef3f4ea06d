"""API tokens, between domain types and messages."""

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import admin_user_pb2, api_token_pb2
from gatekeeper_grpc.domain.api_token import ApiToken, ApiTokenConfig
from gatekeeper_grpc.domain.caller import Caller
from gatekeeper_grpc.domain.errors import InvalidArgument, PermissionDenied
from gatekeeper_grpc.domain.limits import check_text
from gatekeeper_grpc.wire.admin_users import role_from_proto
from gatekeeper_grpc.wire.timestamps import time_from_proto, time_to_proto

_MAX_TOKEN_ID_CHARS = 128


def api_token_to_proto(token: ApiToken) -> api_token_pb2.ApiToken:
    """Convert an API token; times that it lacks stay absent."""
    return api_token_pb2.ApiToken(
        token_id=token.token_id,
        name=token.config.name,
        role=admin_user_pb2.Role.ValueType(token.config.role),
        expire_time=time_to_proto(token.config.expire_time),
        create_time=time_to_proto(token.create_time),
        revoke_time=time_to_proto(token.revoke_time),
        last_used_time=time_to_proto(token.last_used_time),
        revision=token.revision,
        username=token.username,
        admin_id=token.admin_id,
    )


def api_token_config_from_proto(request: admin.CreateApiTokenRequest, maker: Caller) -> ApiTokenConfig:
    """Convert a new token of `maker`; fields that the server decides are ignored.

    Raises:
        InvalidArgument: The name, the role or the time is invalid.
        PermissionDenied: The role is higher than that of `maker`.
    """
    token = request.api_token
    role = role_from_proto("api_token.role", token.role)
    if not token.HasField("expire_time"):
        raise InvalidArgument.of("api_token.expire_time", "must be given: every API token expires")
    expire_time = time_from_proto("api_token.expire_time", token.expire_time)
    config = ApiTokenConfig(name=token.name, role=role, expire_time=expire_time)
    if role > maker.role:
        raise PermissionDenied.role(maker.role.name, required=role.name)
    return config


def check_token_id(field: str, token_id: str) -> None:
    """Check the id of an API token.

    Raises:
        InvalidArgument: It is empty or too long.
    """
    check_text(field, token_id, at_least=1, at_most=_MAX_TOKEN_ID_CHARS)
