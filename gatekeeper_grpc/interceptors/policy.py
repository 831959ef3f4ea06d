"""Who may call what, and on which workers: one row per RPC, checked against the protos before the server starts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from google.protobuf.descriptor import FileDescriptor

from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import PermissionDenied
from gatekeeper_grpc.interceptors.grpcio_call import Patience
from gatekeeper_grpc.interceptors.pools import PoolName


class Door(Enum):
    """Access that does not depend on a role."""

    OPEN = "open"
    """Anybody may call; no token is read."""
    CLOSED = "closed"
    """Nobody may call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What holds for every call of one method."""

    access: Role | Door
    """The least role that may call, or a door."""
    pool: PoolName
    quiet: bool = False
    """Log successes at DEBUG: thousands a second say nothing."""
    max_request_bytes: int | None = None
    """Largest request message; None: the server's limit for all methods."""
    patience: Patience | None = None
    """How long its messages and responses may take; None: the server's for its kind of method."""


DENIED: Final = Policy(access=Door.CLOSED, pool=PoolName.OPERATIONS)
"""What holds for a method without a row."""

_LOGIN: Final = Policy(access=Door.OPEN, pool=PoolName.LOGIN)
# They hash no password: a flood of logins must not stop them.
_SESSION: Final = Policy(access=Door.OPEN, pool=PoolName.ADMIN)
_READ: Final = Policy(access=Role.VIEWER, pool=PoolName.ADMIN)
_WRITE: Final = Policy(access=Role.EDITOR, pool=PoolName.ADMIN)
_IMPORT: Final = Policy(access=Role.EDITOR, pool=PoolName.STREAMS)
_EVALUATE: Final = Policy(access=Door.OPEN, pool=PoolName.EVALUATION, quiet=True, max_request_bytes=256 * 1024)
_EVALUATE_STREAM: Final = Policy(access=Door.OPEN, pool=PoolName.STREAMS)
# grpcio's health service holds its one lock while it sends: a watcher that does not read must go soon.
_HEALTH: Final = Policy(
    access=Door.OPEN, pool=PoolName.OPERATIONS, quiet=True, patience=Patience(limit_s=2.0, pressed_s=0.1)
)
# Not with health: an open reflection stream keeps its worker.
_REFLECTION: Final = Policy(access=Door.OPEN, pool=PoolName.STREAMS, quiet=True)

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "/gatekeeper.v1.AuthService/Login": _LOGIN,
        "/gatekeeper.v1.AuthService/RefreshToken": _SESSION,
        "/gatekeeper.v1.AuthService/Logout": _SESSION,
        "/gatekeeper.v1.AdminService/CreateFlag": _WRITE,
        "/gatekeeper.v1.AdminService/GetFlag": _READ,
        "/gatekeeper.v1.AdminService/ListFlags": _READ,
        "/gatekeeper.v1.AdminService/UpdateFlag": _WRITE,
        "/gatekeeper.v1.AdminService/DeleteFlag": _WRITE,
        "/gatekeeper.v1.AdminService/AddTargets": _WRITE,
        "/gatekeeper.v1.AdminService/RemoveTargets": _WRITE,
        "/gatekeeper.v1.AdminService/ListTargets": _READ,
        "/gatekeeper.v1.AdminService/ImportTargets": _IMPORT,
        "/gatekeeper.v1.EvaluationService/EvaluateFlags": _EVALUATE,
        "/gatekeeper.v1.EvaluationService/BulkEvaluateFlags": _EVALUATE_STREAM,
        "/grpc.health.v1.Health/Check": _HEALTH,
        "/grpc.health.v1.Health/List": _HEALTH,
        "/grpc.health.v1.Health/Watch": _HEALTH,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _REFLECTION,
    }
)


class PolicyTableError(Exception):
    """The table and the protos disagree: a fault of this build, found before the server starts."""


def check_policies(policies: Mapping[str, Policy], files: Iterable[FileDescriptor]) -> None:
    """Require one row for each method of the services in `files`, and no row beside these.

    Raises:
        PolicyTableError: Names every method without a row and every row without a method.
    """
    methods = _method_names(files)
    faults = [f"{name} has no policy row" for name in sorted(methods - policies.keys())]
    faults += [f"policy row {name} names no method" for name in sorted(policies.keys() - methods)]
    if faults:
        raise PolicyTableError("; ".join(faults))


def authorize(caller: Caller, access: Role | Door) -> None:
    """Require that `caller` has at least the role that `access` asks for; nobody passes a closed door.

    Raises:
        PermissionDenied: Names the caller's role and the one required.
    """
    if access is Door.OPEN:
        return
    if access is Door.CLOSED:
        raise PermissionDenied("nobody may call this method")
    if caller.role < access:
        raise PermissionDenied(
            f"this call needs role {access.name}, yours is {caller.role.name}",
            metadata={"role": caller.role.name, "required_role": access.name},
        )


def _method_names(files: Iterable[FileDescriptor]) -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    }
