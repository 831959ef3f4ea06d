"""Client keys, between domain types and messages."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from gatekeeper.v1 import admin_service_pb2 as admin
from gatekeeper.v1 import client_key_pb2
from gatekeeper_grpc.domain.client_key import ClientKey, ClientKeyConfig, RateTier
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.domain.limits import check_text
from gatekeeper_grpc.wire.flags import timestamp

_MAX_KEY_ID_CHARS = 128


def client_key_to_proto(key: ClientKey) -> client_key_pb2.ClientKey:
    """Convert a client key; times that have not come stay absent."""
    return client_key_pb2.ClientKey(
        key_id=key.key_id,
        name=key.config.name,
        tier=client_key_pb2.RateTier.ValueType(key.config.tier),
        create_time=timestamp(key.create_time),
        expire_time=_timestamp(key.config.expire_time),
        revoke_time=_timestamp(key.revoke_time),
        last_used_time=_timestamp(key.last_used_time),
        revision=key.revision,
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    return None if time is None else timestamp(time)


def client_key_config_from_proto(request: admin.CreateClientKeyRequest) -> ClientKeyConfig:
    """Convert what an admin decides about a new key; what the server decides is ignored."""
    return ClientKeyConfig(
        name=request.client_key.name, tier=_tier(request.client_key), expire_time=_expire_time(request.client_key)
    )


def check_key_id(field: str, key_id: str) -> None:
    """Check what is to name a client key: any text that one could be found by."""
    check_text(field, key_id, at_least=1, at_most=_MAX_KEY_ID_CHARS)


def _tier(key: client_key_pb2.ClientKey) -> RateTier:
    try:
        return RateTier(key.tier)
    except ValueError:
        raise InvalidArgument.of(
            "client_key.tier", "must be RATE_TIER_STANDARD, RATE_TIER_HIGH or RATE_TIER_UNLIMITED"
        ) from None


def _expire_time(key: client_key_pb2.ClientKey) -> datetime | None:
    if not key.HasField("expire_time"):
        return None
    try:
        return key.expire_time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument.of("client_key.expire_time", "must be a time of the years 1 to 9999") from None
