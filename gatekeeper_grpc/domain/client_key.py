"""The credentials of calling services: what an admin decides about a key, and the key as it stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any

from gatekeeper_grpc.domain.limits import MAX_CLIENT_NAME_CHARS, check_text


class RateTier(IntEnum):
    """How much a caller may call. Values are those of the proto enum."""

    STANDARD = 1
    HIGH = 2
    UNLIMITED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKeyConfig:
    """What an admin decides about a key.

    Valid by construction; `InvalidArgument` names the field as "client_key.<name>". Whether `expire_time` (aware; None:
    never) lies in the future is found out when the key is made.
    """

    name: str
    tier: RateTier
    expire_time: datetime | None = None

    def __post_init__(self) -> None:
        check_text("client_key.name", self.name, at_least=1, at_most=MAX_CLIENT_NAME_CHARS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """A key as it stands at a revision, without its secret. Empty `key_id`: it was not written."""

    key_id: str
    config: ClientKeyConfig
    create_time: datetime
    revision: int
    revoke_time: datetime | None = None
    last_used_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedClientKey:
    """A new key and its secret, which is shown this once; empty when nothing was written."""

    key: ClientKey
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKey:
    """What verifying a signature takes: whose key, its secret, and until when it is good (None: for ever)."""

    key_id: str
    secret: bytes = field(repr=False)
    tier: RateTier
    expire_time: datetime | None


def client_key_document(key: ClientKey) -> dict[str, Any]:
    """Return a key as JSON values, for the audit log and for stored answers; never its secret.

    Nor when it was last used: that is no change of the key.
    """
    return {
        "key_id": key.key_id,
        "name": key.config.name,
        "tier": key.config.tier.name.lower(),
        "create_time": key.create_time.isoformat(),
        "expire_time": key.config.expire_time and key.config.expire_time.isoformat(),
        "revoke_time": key.revoke_time and key.revoke_time.isoformat(),
        "revision": key.revision,
    }


def client_key_from_document(document: Mapping[str, Any]) -> ClientKey:
    """Rebuild the key of a document made by `client_key_document`."""
    return ClientKey(
        key_id=document["key_id"],
        config=ClientKeyConfig(
            name=document["name"],
            tier=RateTier[document["tier"].upper()],
            expire_time=_time(document["expire_time"]),
        ),
        create_time=datetime.fromisoformat(document["create_time"]),
        revoke_time=_time(document["revoke_time"]),
        revision=document["revision"],
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
