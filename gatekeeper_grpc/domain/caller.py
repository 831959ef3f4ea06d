"""The authenticated caller of the current call."""

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

from gatekeeper_grpc.domain.errors import Unauthenticated


class Role(IntEnum):
    """The role of an admin user; each includes the lower ones. Values are those of the proto enum."""

    VIEWER = 1
    EDITOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated admin user, as in the access token.

    Each mutation compares `token_epoch` with the stored one in its transaction. A change of role or password, or a
    disabled account, therefore takes effect at once, although the token has not expired.
    """

    admin_id: int
    username: str
    role: Role
    token_epoch: int


_current: ContextVar[Caller] = ContextVar("gatekeeper_caller")


def current_caller() -> Caller:
    """Return the caller of the current call.

    Raises:
        Unauthenticated: The call is not authenticated.
    """
    try:
        return _current.get()
    except LookupError:
        raise Unauthenticated.access_token() from None


def set_current_caller(caller: Caller) -> None:
    """Make `caller` the current one. grpcio serves each call in a context of its own, so nothing needs undoing."""
    _current.set(caller)
