"""Who may call which RPC, on which pool: one row per RPC, checked against the protos before the server starts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from google.protobuf.descriptor import FileDescriptor

from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.domain.errors import PermissionDenied
from gatekeeper_grpc.transport.admission import PoolName
from gatekeeper_grpc.transport.message_timeout import MessageTimeout


class Access(Enum):
    """Access that does not depend on a role."""

    PUBLIC = "public"
    """Anybody may call; no token is read."""
    DENIED = "denied"
    """Nobody may call."""


class CountsAs(Enum):
    """Under which rate limit a call counts."""

    LOGIN = "login"
    """Checks a password: limited by address."""
    READ = "read"
    """Reads for an admin user; a whole preview counts once."""
    MUTATION = "mutation"
    """Changes something for an admin user; a whole import counts once, and so does a dry run."""
    EVALUATION = "evaluation"
    """Evaluates flags, or watches them, for a client key or an address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of one method."""

    access: Role | Access
    """The least role that may call, or an access level without a role."""
    pool: PoolName
    counts_as: CountsAs | None = None
    """Under which rate limit calls count; None: under none."""
    quiet: bool = False
    """Log successes at DEBUG: there may be thousands a second."""
    max_request_bytes: int = 4 << 20
    """Largest request message."""
    max_text_chars: int | None = None
    """Cut longer texts of a message before it waits for a worker; None: wait with the message as it is."""
    timeout: MessageTimeout | None = None
    """How long its messages and responses may take; None: the server's default for this kind of method."""
    progress_field: str | None = None
    """The field that must not be empty in a message for its client not to be silent; None: every message counts."""
    token_optional: bool = False
    """Whether a call without an access token is let in, for the servicer to authenticate by its message."""
    when_too_large: str = "ask for less"
    """What a caller is told to do whose response would be longer than clients accept."""
    for_api_tokens: bool = True
    """Whether an API token may call, if its role suffices."""
    signable: bool = False
    """Whether calls may have a client key or be signed with one. The settings may require either."""


DENIED: Final = Policy(access=Access.DENIED, pool=PoolName.OPERATIONS)
"""The rules of a method without a row."""

# Credentials that cannot be valid are wrong like any others, and not invalid: a megabyte is received. But it does not
# wait: a cut text is as wrong, because no valid one has more than 1,024 characters.
_CREDENTIALS: Final = Policy(
    access=Access.PUBLIC, pool=PoolName.LOGIN, max_request_bytes=(1 << 20) + (64 << 10), max_text_chars=2_048
)
_LOGIN: Final = replace(_CREDENTIALS, counts_as=CountsAs.LOGIN)
_REFRESH: Final = replace(_CREDENTIALS, pool=PoolName.REFRESH)
_LOGOUT: Final = replace(_CREDENTIALS, pool=PoolName.LOGOUT)
_READ: Final = Policy(access=Role.VIEWER, pool=PoolName.ADMIN_READ, counts_as=CountsAs.READ)
_READ_AUDIT: Final = replace(_READ, when_too_large="leave out the large entry by start_revision and end_revision")
_WRITE: Final = Policy(access=Role.EDITOR, pool=PoolName.ADMIN_WRITE, counts_as=CountsAs.MUTATION)
_CONFIGURE: Final = replace(_WRITE, max_request_bytes=3 << 20)
_IMPORT: Final = replace(_WRITE, pool=PoolName.ADMIN_STREAMS)
_SUPERVISE: Final = replace(_READ, access=Role.ADMIN)
_MANAGE: Final = replace(_WRITE, access=Role.ADMIN)
# A stolen API token must not make other credentials, which outlive it.
_GIVE_ACCESS: Final = replace(_MANAGE, for_api_tokens=False)
# They hash passwords with bcrypt. Not in the login pool: during a flood of logins, an admin must be able to disable
# another.
_MANAGE_PASSWORDS: Final = replace(_GIVE_ACCESS, pool=PoolName.CREDENTIALS)
_EXPORT: Final = replace(_READ, access=Role.ADMIN, pool=PoolName.ADMIN_STREAMS)
_VERIFY: Final = replace(_READ, pool=PoolName.ADMIN_STREAMS)
# Any role may end its own sessions and tokens; the store knows whose they are.
_OWN_CREDENTIALS: Final = replace(_WRITE, access=Role.VIEWER, for_api_tokens=False)
# Without a token for those who must change their password before a login: name and password are in the message. It
# counts as a login: a stolen session that makes changes must not keep its owner from ending it by a new password.
_OWN_PASSWORD: Final = replace(
    _LOGIN, access=Role.VIEWER, pool=PoolName.OWN_PASSWORD, token_optional=True, for_api_tokens=False
)
_EVALUATE: Final = Policy(
    access=Access.PUBLIC,
    pool=PoolName.EVALUATION,
    counts_as=CountsAs.EVALUATION,
    quiet=True,
    max_request_bytes=256 * 1024,
    when_too_large="name flag_keys, leave out include_details, or call BulkEvaluateFlags, which divides its answer",
    signable=True,
)
_WATCH: Final = Policy(
    access=Access.PUBLIC,
    pool=PoolName.WATCH,
    counts_as=CountsAs.EVALUATION,
    max_request_bytes=256 * 1024,
    signable=True,
)
_EVALUATE_STREAM: Final = Policy(
    access=Access.PUBLIC,
    pool=PoolName.BULK,
    counts_as=CountsAs.EVALUATION,
    signable=True,
    progress_field="contexts",
)
_PREVIEW: Final = replace(_READ, pool=PoolName.PREVIEW, progress_field="contexts")
# grpcio's health service holds its only lock while it sends: a watcher that does not read must be cancelled soon.
_HEALTH: Final = Policy(
    access=Access.PUBLIC,
    pool=PoolName.OPERATIONS,
    quiet=True,
    timeout=MessageTimeout(limit_s=2.0, limit_when_saturated_s=0.1),
)
# Not in the health pool: an open reflection stream keeps its worker.
_REFLECTION: Final = Policy(access=Access.PUBLIC, pool=PoolName.REFLECTION, quiet=True)

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "/gatekeeper.v1.AuthService/Login": _LOGIN,
        "/gatekeeper.v1.AuthService/RefreshToken": _REFRESH,
        "/gatekeeper.v1.AuthService/Logout": _LOGOUT,
        "/gatekeeper.v1.AdminService/CreateFlag": _WRITE,
        "/gatekeeper.v1.AdminService/GetFlag": _READ,
        "/gatekeeper.v1.AdminService/ListFlags": _READ,
        "/gatekeeper.v1.AdminService/GetFlagUsage": _READ,
        "/gatekeeper.v1.AdminService/ListUnknownFlagKeys": _READ,
        "/gatekeeper.v1.AdminService/UpdateFlag": _WRITE,
        "/gatekeeper.v1.AdminService/PreviewFlagChange": _PREVIEW,
        "/gatekeeper.v1.AdminService/DeleteFlag": _WRITE,
        "/gatekeeper.v1.AdminService/AddTargets": _WRITE,
        "/gatekeeper.v1.AdminService/RemoveTargets": _WRITE,
        "/gatekeeper.v1.AdminService/ListTargets": _READ,
        "/gatekeeper.v1.AdminService/ImportTargets": _IMPORT,
        "/gatekeeper.v1.AdminService/CreateSegment": _WRITE,
        "/gatekeeper.v1.AdminService/GetSegment": _READ,
        "/gatekeeper.v1.AdminService/ListSegments": _READ,
        "/gatekeeper.v1.AdminService/UpdateSegment": _WRITE,
        "/gatekeeper.v1.AdminService/DeleteSegment": _WRITE,
        "/gatekeeper.v1.AdminService/AddSegmentMembers": _IMPORT,
        "/gatekeeper.v1.AdminService/RemoveSegmentMembers": _WRITE,
        "/gatekeeper.v1.AdminService/ListSegmentMembers": _READ,
        "/gatekeeper.v1.AdminService/CreateUser": _WRITE,
        "/gatekeeper.v1.AdminService/GetUser": _READ,
        "/gatekeeper.v1.AdminService/ListUsers": _READ,
        "/gatekeeper.v1.AdminService/UpdateUser": _WRITE,
        "/gatekeeper.v1.AdminService/DeleteUser": _WRITE,
        "/gatekeeper.v1.AdminService/ExportUserData": _EXPORT,
        "/gatekeeper.v1.AdminService/EraseUser": _MANAGE,
        "/gatekeeper.v1.AdminService/CreateAdminUser": _MANAGE_PASSWORDS,
        "/gatekeeper.v1.AdminService/ListAdminUsers": _SUPERVISE,
        "/gatekeeper.v1.AdminService/UpdateAdminUser": _MANAGE_PASSWORDS,
        "/gatekeeper.v1.AdminService/DeleteAdminUser": _GIVE_ACCESS,
        "/gatekeeper.v1.AdminService/ChangePassword": _OWN_PASSWORD,
        "/gatekeeper.v1.AdminService/ListSessions": _READ,
        "/gatekeeper.v1.AdminService/RevokeSession": _OWN_CREDENTIALS,
        "/gatekeeper.v1.AdminService/CreateApiToken": _OWN_CREDENTIALS,
        "/gatekeeper.v1.AdminService/ListApiTokens": _READ,
        "/gatekeeper.v1.AdminService/RevokeApiToken": _OWN_CREDENTIALS,
        "/gatekeeper.v1.AdminService/ListAuthEvents": _SUPERVISE,
        "/gatekeeper.v1.AdminService/CreateClientKey": _GIVE_ACCESS,
        "/gatekeeper.v1.AdminService/ListClientKeys": _SUPERVISE,
        "/gatekeeper.v1.AdminService/RevokeClientKey": _MANAGE,
        "/gatekeeper.v1.AdminService/ListAuditEntries": _READ_AUDIT,
        "/gatekeeper.v1.AdminService/VerifyAuditLog": _VERIFY,
        "/gatekeeper.v1.AdminService/GetAuditCheckpoint": _READ,
        "/gatekeeper.v1.AdminService/ApplyConfiguration": _CONFIGURE,
        "/gatekeeper.v1.EvaluationService/EvaluateFlags": _EVALUATE,
        "/gatekeeper.v1.EvaluationService/BulkEvaluateFlags": _EVALUATE_STREAM,
        "/gatekeeper.v1.EvaluationService/WatchFlags": _WATCH,
        "/grpc.health.v1.Health/Check": _HEALTH,
        "/grpc.health.v1.Health/List": _HEALTH,
        "/grpc.health.v1.Health/Watch": _HEALTH,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _REFLECTION,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _REFLECTION,
    }
)


class PolicyTableError(Exception):
    """The table and the protos differ: an error of this build, found before the server starts."""


def check_policies(policies: Mapping[str, Policy], files: Iterable[FileDescriptor]) -> None:
    """Require one row for each method of the services in `files`, and no other row.

    Raises:
        PolicyTableError: Names every method without a row and every row without a method.
    """
    methods = _method_names(files)
    faults = [f"{name} has no policy row" for name in sorted(methods - policies.keys())]
    faults += [f"policy row {name} names no method" for name in sorted(policies.keys() - methods)]
    if faults:
        raise PolicyTableError("; ".join(faults))


def authorize(caller: Caller, policy: Policy) -> None:
    """Require that `caller` has at least the role that a method requires, and a kind of token that it accepts.

    Raises:
        PermissionDenied: Says which kind of token, or names the caller's role and the one required.
    """
    if may_call(caller, policy):
        return
    if policy.access is Access.DENIED:
        raise PermissionDenied("nobody may call this method")
    if _is_kept_from(caller, policy):
        raise PermissionDenied.api_token()
    raise PermissionDenied.role(caller.role.name, required=policy.access.name)


def may_call(caller: Caller, policy: Policy) -> bool:
    """Return whether `authorize` lets `caller` pass."""
    if policy.access is Access.PUBLIC:
        return True
    return policy.access is not Access.DENIED and caller.role >= policy.access and not _is_kept_from(caller, policy)


def _is_kept_from(caller: Caller, policy: Policy) -> bool:
    return caller.api_token is not None and not policy.for_api_tokens


def _method_names(files: Iterable[FileDescriptor]) -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    }
