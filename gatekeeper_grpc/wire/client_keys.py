"""Client keys, between domain types and messages."""

from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import client_key_pb2
from gatekeeper_grpc.domain.client_key import ClientKey, ClientKeyConfig, ClientKeyType, RateTier
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import check_text, check_visible
from gatekeeper_grpc.wire.timestamps import time_from_proto, time_to_proto

_MAX_KEY_ID_CHARS = 128


def client_key_to_proto(key: ClientKey) -> client_key_pb2.ClientKey:
    """Convert a client key; times that it lacks stay absent."""
    return client_key_pb2.ClientKey(
        key_id=key.key_id,
        name=key.config.name,
        tier=client_key_pb2.RateTier.ValueType(key.config.tier),
        create_time=time_to_proto(key.create_time),
        expire_time=time_to_proto(key.config.expire_time),
        revoke_time=time_to_proto(key.revoke_time),
        last_used_time=time_to_proto(key.last_used_time),
        revision=key.revision,
        type=client_key_pb2.ClientKeyType.ValueType(key.config.type),
    )


def client_key_config_from_proto(request: admin.CreateClientKeyRequest) -> ClientKeyConfig:
    """Convert a new key; fields that the server decides are ignored.

    Raises:
        InvalidArgument: The name, the tier, the type or the time is invalid.
    """
    key = request.client_key
    check_visible("client_key.name", key.name)
    return ClientKeyConfig(
        name=key.name,
        tier=_tier(key),
        type=_type(key),
        expire_time=time_from_proto("client_key.expire_time", key.expire_time) if key.HasField("expire_time") else None,
    )


def check_key_id(field: str, key_id: str) -> None:
    """Check the id of a client key.

    Raises:
        InvalidArgument: It is empty or too long.
    """
    check_text(field, key_id, at_least=1, at_most=_MAX_KEY_ID_CHARS)


def _tier(key: client_key_pb2.ClientKey) -> RateTier:
    try:
        return RateTier(key.tier)
    except ValueError:
        raise InvalidArgument.of(
            "client_key.tier", "must be RATE_TIER_STANDARD, RATE_TIER_HIGH or RATE_TIER_UNLIMITED"
        ) from None


def _type(key: client_key_pb2.ClientKey) -> ClientKeyType:
    try:
        return ClientKeyType(key.type)
    except ValueError:
        raise InvalidArgument.of(
            "client_key.type", "must be CLIENT_KEY_TYPE_BEARER or CLIENT_KEY_TYPE_SIGNING"
        ) from None
