"""A call of every RPC that succeeds, on an installation; and the services that have them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1 import auth_service_pb2, evaluation_service_pb2
from gatekeeper_client.v1.auth_service_pb2 import LogoutRequest, RefreshTokenRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import (
    BulkEvaluateFlagsRequest,
    EvaluateFlagsRequest,
    WatchFlagsRequest,
)
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import TIMEOUT_S, Installation, new_key, send
from tests.support.mutations import FLAG, MUTATIONS, SEGMENT, USER, Kind
from tests.support.operators import enlisted, logged_in

SERVICES = {
    name: file.DESCRIPTOR.services_by_name[name]
    for name, file in (
        ("AdminService", pb),
        ("AuthService", auth_service_pb2),
        ("EvaluationService", evaluation_service_pb2),
    )
}
_READS = ("Get", "List", "Verify", "Export")
CHANGES = [
    method.name
    for service in ("AdminService", "AuthService")
    for method in SERVICES[service].methods
    if not method.name.startswith(_READS)
]
"""The RPCs that change something."""

Act = Callable[[Installation], Any]


def read(rpc: str, **fields: Any) -> Act:
    """Return the call of a reading RPC by one who may."""
    return lambda installation: send(installation.admin_as(Role.ADMIN), rpc, getattr(pb, f"{rpc}Request")(**fields))


def read_one(rpc: str, kind: Kind, field: str) -> Act:
    """Return the call of an RPC that reads something of one thing, which `field` names."""
    return lambda installation: read(rpc, **{field: kind.make(installation, new_key())})(installation)


def authenticate(rpc: str, request: Callable[[Installation], Any]) -> Act:
    return lambda installation: getattr(AuthServiceStub(installation.channels[None]), rpc)(
        request(installation), timeout=TIMEOUT_S
    )


def refresh_token(installation: Installation) -> str:
    return logged_in(installation, enlisted(installation).username).refresh_token


def end_session(installation: Installation) -> Any:
    username = enlisted(installation).username
    logged_in(installation, username)
    (session,) = read("ListSessions", username=username)(installation).sessions
    return read("RevokeSession", session_id=session.session_id)(installation)


def evaluate(installation: Installation) -> Any:
    request = EvaluateFlagsRequest(context=EvaluationContext(user_id="anna"))
    return EvaluationServiceStub(installation.channels[None]).EvaluateFlags(request, timeout=TIMEOUT_S)


def evaluate_many(installation: Installation) -> Any:
    requests = iter([BulkEvaluateFlagsRequest(contexts=[EvaluationContext(user_id="anna")])])
    return list(EvaluationServiceStub(installation.channels[None]).BulkEvaluateFlags(requests, timeout=TIMEOUT_S))


def watch(installation: Installation) -> Any:
    call = EvaluationServiceStub(installation.channels[None]).WatchFlags(WatchFlagsRequest(), timeout=TIMEOUT_S)
    first = next(call)
    call.cancel()
    return first


def mutate(rpc: str) -> Act:
    return lambda installation: MUTATIONS[rpc].ask(installation, MUTATIONS[rpc].make(installation))


def preview(installation: Installation) -> Any:
    flag = Flag(key=FLAG.make(installation, new_key()), enabled=True)
    contexts = [EvaluationContext(user_id="anna")]
    request = pb.PreviewFlagChangeRequest(flag=flag, update_mask=FieldMask(paths=["enabled"]), contexts=contexts)
    return send(installation.admin_as(Role.VIEWER), "PreviewFlagChange", request)


LISTS = (
    *("ListFlags", "ListSegments", "ListUsers", "ListAdminUsers", "ListAuthEvents", "ListClientKeys"),
    *("ListAuditEntries", "VerifyAuditLog", "ListSessions", "ListApiTokens", "ListUnknownFlagKeys"),
)
SUCCESSES: Mapping[str, Act] = MappingProxyType(
    {rpc: mutate(rpc) for rpc in MUTATIONS}
    | {rpc: read(rpc) for rpc in LISTS}
    | {
        "GetFlag": read_one("GetFlag", FLAG, "key"),
        "GetFlagUsage": read_one("GetFlagUsage", FLAG, "key"),
        "PreviewFlagChange": preview,
        "ListTargets": read_one("ListTargets", FLAG, "flag_key"),
        "GetSegment": read_one("GetSegment", SEGMENT, "key"),
        "ListSegmentMembers": read_one("ListSegmentMembers", SEGMENT, "segment_key"),
        "GetUser": read_one("GetUser", USER, "user_id"),
        "ExportUserData": read_one("ExportUserData", USER, "user_id"),
        "Login": lambda installation: logged_in(installation, enlisted(installation).username),
        "RefreshToken": authenticate("RefreshToken", lambda at: RefreshTokenRequest(refresh_token=refresh_token(at))),
        "Logout": authenticate("Logout", lambda at: LogoutRequest(refresh_token=refresh_token(at))),
        "RevokeSession": end_session,
        "EvaluateFlags": evaluate,
        "BulkEvaluateFlags": evaluate_many,
        "WatchFlags": watch,
    }
)
# That of a server with a signing key: test_audit.py.
NEEDS_A_KEY = "GetAuditCheckpoint"
