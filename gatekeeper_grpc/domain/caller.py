"""The authenticated caller of the current call."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Final, NamedTuple
from uuid import UUID

from gatekeeper_grpc.domain.errors import Unauthenticated

NO_SESSION: Final = UUID(int=0)
"""The session of a caller who has not logged in; it is never stored."""


class Role(IntEnum):
    """The role of an admin user; each includes the lower ones. Values are those of the proto enum."""

    VIEWER = 1
    EDITOR = 2
    ADMIN = 3


class ApiTokenName(NamedTuple):
    """The identity of an API token, and what its maker called it."""

    token_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated admin user, as in the access token; or an API token, which acts for its maker.

    Each transaction of a call compares `role` and `token_epoch` with the stored ones, and looks for the session. A
    change of role or password, a disabled account, or a logout therefore takes effect at once, although the token has
    not expired. Of an API token it looks for the token and a maker who still has `role`.
    """

    admin_id: int
    username: str
    role: Role
    token_epoch: int
    session_id: UUID = NO_SESSION
    """The login that the token descends from."""
    expire_time_s: float = field(default=inf, compare=False)
    """When the access token or API token expires, in seconds since 1970."""
    api_token: ApiTokenName | None = None
    """The API token that calls; None: a person with an access token."""

    def check_token_time(self) -> None:
        """Require that the token of a call that is still open has not expired.

        Raises:
            Unauthenticated: It has.
        """
        if time.time() >= self.expire_time_s:
            raise Unauthenticated.access_token()

    @property
    def name(self) -> str:
        """The caller as the audit log names it: "admin:<username>#<admin_id>", or "token:<name>#<token_id>"."""
        if self.api_token is not None:
            return f"token:{self.api_token.name}#{self.api_token.token_id}"
        return f"admin:{self.username}#{self.admin_id}"

    @property
    def identity(self) -> str:
        """Who calls, without a name that others may have as well: "admin#<admin_id>", or "token#<token_id>"."""
        return f"token#{self.api_token.token_id}" if self.api_token else f"admin#{self.admin_id}"


_current: ContextVar[Caller] = ContextVar("gatekeeper_caller")
_checked_at: ContextVar[float] = ContextVar("gatekeeper_caller_checked_at", default=-inf)


def current_caller() -> Caller:
    """Return the caller of the current call.

    Raises:
        Unauthenticated: The call is not authenticated.
    """
    try:
        return _current.get()
    except LookupError:
        raise Unauthenticated.access_token() from None


def caller_if_any() -> Caller | None:
    """Return the caller of the current call; None outside a call, and in a call that needs no access token."""
    return _current.get(None)


def set_current_caller(caller: Caller) -> None:
    """Make `caller` the current one. grpcio serves each call in a context of its own, so nothing needs undoing."""
    _current.set(caller)


def note_caller_checked() -> None:
    """Note that a transaction of the current call has compared its caller with the stored admin user."""
    _checked_at.set(time.monotonic())


def caller_check_age_s() -> float:
    """Return how long ago the current call last compared its caller, in seconds; infinite: it has not."""
    return time.monotonic() - _checked_at.get()
