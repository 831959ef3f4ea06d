"""Every RPC of ours answers, and for each error that its proto documents there is a test that provokes it."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import Installation, refusal_of, send
from tests.support.mutations import FLAG, MUTATIONS, SEGMENT, USER
from tests.support.successes import NEEDS_A_KEY, SERVICES, SUCCESSES, read

PROTOS = Path(__file__).parents[2] / "protos" / "gatekeeper" / "v1"
RPCS = {rpc.name for service in SERVICES.values() for rpc in service.methods}
CODES = {code.name for code in grpc.StatusCode}

# --- Success ---------------------------------------------------------------------------------------------------------


def test_every_rpc_has_a_call_that_succeeds() -> None:
    assert SUCCESSES.keys() | {NEEDS_A_KEY} == RPCS


@pytest.mark.parametrize("rpc", SUCCESSES)
def test_an_rpc_answers(installation: Installation, rpc: str) -> None:
    assert SUCCESSES[rpc](installation) is not None


# --- Documented errors -----------------------------------------------------------------------------------------------

UNKNOWN = {
    "GetFlag": (FLAG, "key"),
    "GetFlagUsage": (FLAG, "key"),
    "ListTargets": (FLAG, "flag_key"),
    "GetSegment": (SEGMENT, "key"),
    "ListSegmentMembers": (SEGMENT, "segment_key"),
    "GetUser": (USER, "user_id"),
}


@pytest.mark.parametrize("rpc", UNKNOWN)
def test_what_is_not_there_cannot_be_read(installation: Installation, rpc: str) -> None:
    kind, field = UNKNOWN[rpc]

    assert refusal_of(lambda: read(rpc, **{field: "nobody"})(installation)) == kind.unknown("nobody")


# Where an error is provoked that is peculiar to an RPC: a module of this folder that calls it.
PECULIAR: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("CreateFlag", "NOT_FOUND"): "test_admin_flags",
        ("CreateFlag", "RESOURCE_EXHAUSTED"): "test_quotas",
        ("ListFlags", "FAILED_PRECONDITION"): "test_flag_usage",
        ("PreviewFlagChange", "NOT_FOUND"): "test_preview_flag_change",
        ("PreviewFlagChange", "ABORTED"): "test_preview_flag_change",
        ("PreviewFlagChange", "RESOURCE_EXHAUSTED"): "test_preview_flag_change",
        ("CreateSegment", "RESOURCE_EXHAUSTED"): "test_admin_segments",
        ("UpdateSegment", "RESOURCE_EXHAUSTED"): "test_admin_segments",
        ("DeleteSegment", "FAILED_PRECONDITION"): "test_admin_segments",
        ("ApplyConfiguration", "ABORTED"): "test_apply_configuration",
        ("ApplyConfiguration", "FAILED_PRECONDITION"): "test_apply_configuration",
        ("ApplyConfiguration", "RESOURCE_EXHAUSTED"): "test_apply_configuration",
        ("CreateUser", "RESOURCE_EXHAUSTED"): "test_stored_attributes",
        ("UpdateUser", "RESOURCE_EXHAUSTED"): "test_stored_attributes",
        ("EraseUser", "FAILED_PRECONDITION"): "test_erase_user",
        ("EraseUser", "INVALID_ARGUMENT"): "test_erase_user",
        ("UpdateAdminUser", "FAILED_PRECONDITION"): "test_operators",
        ("DeleteAdminUser", "FAILED_PRECONDITION"): "test_operators",
        ("ListSessions", "PERMISSION_DENIED"): "test_sessions",
        ("RevokeSession", "NOT_FOUND"): "test_sessions",
        ("CreateApiToken", "PERMISSION_DENIED"): "test_api_tokens",
        ("CreateApiToken", "RESOURCE_EXHAUSTED"): "test_api_tokens",
        ("ListApiTokens", "PERMISSION_DENIED"): "test_api_tokens",
        ("ChangePassword", "UNAUTHENTICATED"): "test_operators",
        ("ChangePassword", "RESOURCE_EXHAUSTED"): "test_operators",
        ("Login", "INVALID_ARGUMENT"): "test_auth_service",
        ("Login", "UNAUTHENTICATED"): "test_auth_service",
        ("Login", "RESOURCE_EXHAUSTED"): "test_operators",
        ("Login", "FAILED_PRECONDITION"): "test_required_password_change",
        ("RefreshToken", "INVALID_ARGUMENT"): "test_auth_service",
        ("RefreshToken", "UNAUTHENTICATED"): "test_auth_service",
        ("Logout", "INVALID_ARGUMENT"): "test_auth_service",
        ("EvaluateFlags", "INVALID_ARGUMENT"): "test_evaluate_flags",
        ("EvaluateFlags", "FAILED_PRECONDITION"): "test_evaluate_flags",
        ("BulkEvaluateFlags", "INVALID_ARGUMENT"): "test_bulk_evaluate",
        ("BulkEvaluateFlags", "FAILED_PRECONDITION"): "test_bulk_evaluate",
        ("EvaluateFlags", "RESOURCE_EXHAUSTED"): "test_cases",
        ("BulkEvaluateFlags", "RESOURCE_EXHAUSTED"): "test_bulk_pacing",
        ("VerifyAuditLog", "RESOURCE_EXHAUSTED"): "test_audit",
        ("GetAuditCheckpoint", "FAILED_PRECONDITION"): "test_audit",
        ("WatchFlags", "INVALID_ARGUMENT"): "test_watch_flags",
        ("WatchFlags", "FAILED_PRECONDITION"): "test_watch_flags",
        ("WatchFlags", "RESOURCE_EXHAUSTED"): "test_watch_flags",
    }
)


def common() -> set[tuple[str, str]]:
    """Every error that the tables of all mutations, and the one above, provoke."""
    return (
        {(rpc, "NOT_FOUND") for rpc in UNKNOWN}
        | {(rpc, "NOT_FOUND") for rpc, mutation in MUTATIONS.items() if mutation.names_another}
        | {(rpc, "ABORTED") for rpc, mutation in MUTATIONS.items() if mutation.has_etag}
        | {(rpc, "ALREADY_EXISTS") for rpc, mutation in MUTATIONS.items() if mutation.creates and mutation.kind.update}
    )


def documented() -> set[tuple[str, str]]:
    """Every status code that the comment of an RPC names; that the database is away is said once, for all of them."""
    protos = "".join(path.read_text(encoding="utf-8") for path in PROTOS.glob("*_service.proto"))
    errors = {
        rpc: comment.partition("Errors:")[2] for comment, rpc in re.findall(r"((?: +//.*\n)+) +rpc (\w+)", protos)
    }
    words = {rpc: set(re.findall(r"[A-Z_]+", re.sub(r"\([^)]*\)", "", text))) for rpc, text in errors.items()}
    return {(rpc, code) for rpc in words for code in words[rpc] & CODES - {"UNAVAILABLE"}}


def test_every_documented_error_is_provoked_by_a_test() -> None:
    assert documented() <= common() | PECULIAR.keys()


def test_the_module_that_is_named_for_an_error_calls_its_rpc() -> None:
    texts = {name: (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8") for name in PECULIAR.values()}

    assert not [(rpc, module) for (rpc, _), module in PECULIAR.items() if rpc.lower() not in texts[module].lower()]


# --- What is required -------------------------------------------------------------------------------------------------


def commented_required(message: Any) -> set[str]:
    """The fields of a message, and of its messages one level down, whose comments say REQUIRED."""
    text = "".join(path.read_text(encoding="utf-8") for path in PROTOS.glob("*.proto"))
    own = _required_in(text, message.name)
    below = {
        f"{field.name}.{name}"
        for field in message.fields
        if field.message_type and not field.is_repeated and field.message_type.file.package == "gatekeeper.v1"
        for name in _required_in(text, field.message_type.name)
    }
    return own | below


def _required_in(text: str, message: str) -> set[str]:
    found = re.search(rf"^message {message} \{{$(.*?)^\}}$", text, re.MULTILINE | re.DOTALL)
    fields = re.findall(
        r"((?:^ +//.*\n)+) +[^/\n{]*?(\w+) (?:= \d+;|\{$)", found.group(1) if found else "", re.MULTILINE
    )
    return {name if name != "served" else "value" for comment, name in fields if "REQUIRED" in comment}


UNARY = [rpc for rpc in SERVICES["AdminService"].methods if not (rpc.client_streaming or rpc.server_streaming)]


@pytest.mark.parametrize("rpc", UNARY, ids=lambda rpc: rpc.name)
def test_what_an_empty_request_lacks_is_commented_as_required(installation: Installation, rpc: Any) -> None:
    request = getattr(pb, rpc.input_type.name)()
    required = commented_required(rpc.input_type)

    try:
        send(installation.admin_as(Role.ADMIN), rpc.name, request)
    except grpc.RpcError as error:
        refusal = refusal_of(partial(_raise, error))
        assert refusal.code is not grpc.StatusCode.INVALID_ARGUMENT or refusal.metadata["field"] in required
    else:
        assert required == set()


def _raise(error: grpc.RpcError) -> None:
    raise error
