"""Who is calling: the identity that authentication established, for the length of one call."""

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

from gatekeeper_grpc.domain.errors import Unauthenticated


class Role(IntEnum):
    """What an admin user may do; each role may do all that a lower one may. Values are those of the proto enum."""

    VIEWER = 1
    EDITOR = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated admin user, as its access token says.

    `token_epoch` is compared with the stored one inside each mutation's transaction, so that a demoted, disabled or
    password-changed admin is stopped at once although the token has not expired.
    """

    admin_id: int
    username: str
    role: Role
    token_epoch: int


_current: ContextVar[Caller] = ContextVar("gatekeeper_caller")


def current_caller() -> Caller:
    """Return the caller of the RPC being served; `Unauthenticated` outside an authenticated call."""
    try:
        return _current.get()
    except LookupError:
        raise Unauthenticated.access_token() from None


def set_current_caller(caller: Caller) -> None:
    """Make `caller` the current one. grpcio serves each call in a context of its own, so nothing needs undoing."""
    _current.set(caller)
