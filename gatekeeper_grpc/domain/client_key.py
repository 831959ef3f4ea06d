"""Client keys, the credentials of calling services."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from gatekeeper_grpc.domain.limits import MAX_CLIENT_NAME_CHARS, check_text


class RateTier(IntEnum):
    """How often the holder of a key may evaluate. Values are those of the proto enum."""

    STANDARD = 1
    HIGH = 2
    UNLIMITED = 3


class ClientKeyType(IntEnum):
    """How calls use a key. Values are those of the proto enum. The id of a key begins with the prefix of its type."""

    BEARER = 1
    """Calls send the secret."""
    SIGNING = 2
    """Calls are signed with the secret."""

    @property
    def prefix(self) -> str:
        """What ids of this type begin with."""
        return "cb_" if self is ClientKeyType.BEARER else "ck_"

    @classmethod
    def of(cls, key_id: str) -> "ClientKeyType":
        """Return the type of a key by its id."""
        return cls.BEARER if key_id.startswith(cls.BEARER.prefix) else cls.SIGNING


class EvaluationAccess(StrEnum):
    """Which credential an evaluation call must have. Values are those of the setting."""

    OPEN = "open"
    """None; one that is sent must be valid."""
    KEY = "key"
    """A bearer key or a signature."""
    SIGNED = "signed"
    """A signature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKeyConfig:
    """The fields of a key that an admin decides. `expire_time` is aware; None: never.

    The store checks that `expire_time` is in the future when it creates the key.

    Raises:
        InvalidArgument: A field is invalid; names it as "client_key.<name>".
    """

    name: str
    tier: RateTier
    type: ClientKeyType = ClientKeyType.SIGNING  # Stored responses of earlier releases have no type, and are of this.
    expire_time: datetime | None = None

    def __post_init__(self) -> None:
        check_text("client_key.name", self.name, at_least=1, at_most=MAX_CLIENT_NAME_CHARS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """A key at a revision, without its secret. Empty `key_id`: it is not stored."""

    key_id: str
    config: ClientKeyConfig
    create_time: datetime
    revision: int
    revoke_time: datetime | None = None
    last_used_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedClientKey:
    """A new key and its secret, which is shown only once; empty if the key is not stored."""

    key: ClientKey
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedClientKey:
    """The parts of a key that verify a call, as stored: `secret` is sealed, and of a bearer key a hash."""

    key_id: str
    secret: bytes
    tier: str
    expire_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKey:
    """The parts of a key that verify a call. `secret` is, of a bearer key, its hash. `expire_time` None: never."""

    key_id: str
    secret: bytes = field(repr=False)
    tier: RateTier
    expire_time: datetime | None


def client_key_document(key: ClientKey) -> dict[str, Any]:
    """Return a key as JSON values, for the audit log.

    Without the secret, and without the time of last use, which is no change of the key.
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
