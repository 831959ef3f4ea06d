"""API tokens, the credentials of automation: each acts for the admin user who made it."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from gatekeeper_grpc.domain.admin_user import check_new_username
from gatekeeper_grpc.domain.caller import ApiTokenName, Caller, Role

MAX_API_TOKENS: Final = 100
"""Of one admin user: those that are neither expired nor revoked."""
MAX_API_TOKEN_AGE: Final = timedelta(days=366)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenConfig:
    """What the maker of a token decides. `expire_time` is aware.

    The store checks, when it creates the token, that `expire_time` is in the future and at most `MAX_API_TOKEN_AGE`
    ahead.

    Raises:
        InvalidArgument: The name is invalid: its rule is that of a username, because audit entries show it as an actor.
    """

    name: str
    role: Role
    expire_time: datetime

    def __post_init__(self) -> None:
        check_new_username("api_token.name", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiToken:
    """A token at a revision, without its secret. Empty `token_id`: it is not stored."""

    token_id: str
    config: ApiTokenConfig
    admin_id: int
    """Its maker."""
    username: str
    create_time: datetime
    revision: int
    revoke_time: datetime | None = None
    last_used_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedApiToken:
    """A new token and its secret, which is shown only once; empty if the token is not stored."""

    token: ApiToken
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveApiToken:
    """What authenticates calls with a token that is valid, and whose maker may call."""

    token_id: str
    secret_hash: bytes = field(repr=False)
    name: str
    role: Role
    maker_role: Role
    admin_id: int
    username: str
    expire_time: datetime

    def caller(self) -> Caller:
        """Return whom a call with the token is by; it may what both the token and its maker may."""
        return Caller(
            admin_id=self.admin_id,
            username=self.username,
            role=min(self.role, self.maker_role),
            token_epoch=0,
            expire_time_s=self.expire_time.timestamp(),
            api_token=ApiTokenName(self.token_id, self.name),
        )


def api_token_document(token: ApiToken) -> dict[str, Any]:
    """Return a token as JSON values, for the audit log.

    Without the secret, and without the time of last use, which is no change of the token.
    """
    return {
        "token_id": token.token_id,
        "name": token.config.name,
        "role": token.config.role.name.lower(),
        "admin_id": token.admin_id,
        "username": token.username,
        "create_time": token.create_time.isoformat(),
        "expire_time": token.config.expire_time.isoformat(),
        "revoke_time": token.revoke_time and token.revoke_time.isoformat(),
        "revision": token.revision,
    }
