"""Access: tokens, roles, and the policy table."""

import importlib
import pkgutil
from typing import Any

import grpc
import pytest
from google.protobuf import wrappers_pb2
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2

import gatekeeper_client.v1
from gatekeeper_client.v1 import admin_service_pb2
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.interceptors.policy import POLICIES, Access, Policy, PolicyTableError, check_policies
from gatekeeper_grpc.lifecycle.server import served_files
from gatekeeper_grpc.transport.admission import PoolName
from tests.support.stages import EDITOR_TOKEN, echo, error_info, fails, serve, text, unary

pytestmark = pytest.mark.promise("D5")


def our_files() -> list[FileDescriptor]:
    names = [
        module.name for module in pkgutil.iter_modules(gatekeeper_client.v1.__path__) if module.name.endswith("_pb2")
    ]
    return [importlib.import_module(f"gatekeeper_client.v1.{name}").DESCRIPTOR for name in names]


def role_policy(role: Role) -> Policy:
    return Policy(access=role, pool=PoolName.ADMIN_WRITE)


BAD_HEADERS: dict[str, tuple[tuple[str, Any], ...]] = {
    "none": (),
    "two": EDITOR_TOKEN * 2,
    "good and bad": (*EDITOR_TOKEN, ("authorization", "Bearer nonsense")),
    "empty": (("authorization", ""),),
    "no scheme": (("authorization", "EDITOR"),),
    "other scheme": (("authorization", "Basic EDITOR"),),
    "no token": (("authorization", "Bearer "),),
    "two tokens": (("authorization", "Bearer EDITOR EDITOR"),),
    "padded": (("authorization", "Bearer  EDITOR"),),
    "unknown token": (("authorization", "Bearer nonsense"),),
    "other key": (("x-authorization", "Bearer EDITOR"),),
    "binary key": (("authorization-bin", b"Bearer EDITOR"),),
}


@pytest.mark.parametrize("metadata", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_every_bad_token_gets_the_same_error(metadata: tuple[tuple[str, Any], ...]) -> None:
    with serve({"Get": (unary(echo), role_policy(Role.VIEWER))}) as server:
        error = fails(server.unary("Get"), text(), metadata=metadata)

    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert error.details() == ("a valid access token is required: send it as metadata 'authorization: Bearer <token>'")
    assert (error_info(error).reason, dict(error_info(error).metadata)) == ("UNAUTHENTICATED", {})


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_not_case_sensitive(scheme: str) -> None:
    with serve({"Get": (unary(echo), role_policy(Role.VIEWER))}) as server:
        assert server.unary("Get")(text(), metadata=(("authorization", f"{scheme} EDITOR"),)) == text()


@pytest.mark.parametrize("required", list(Role))
@pytest.mark.parametrize("role", list(Role))
def test_a_role_may_do_what_it_and_lower_roles_may(role: Role, required: Role) -> None:
    token = (("authorization", f"Bearer {role.name}"),)
    with serve({"Act": (unary(echo), role_policy(required))}) as server:
        if role >= required:
            assert server.unary("Act")(text(), metadata=token) == text()
            return
        error = fails(server.unary("Act"), text(), metadata=token)

    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert dict(error_info(error).metadata) == {"role": role.name, "required_role": required.name}


def test_a_public_method_reads_no_token() -> None:
    with serve({"Get": (unary(echo), Policy(access=Access.PUBLIC, pool=PoolName.EVALUATION))}) as server:
        assert server.unary("Get")(text(), metadata=BAD_HEADERS["unknown token"]) == text()


def test_a_served_method_without_a_row_is_denied_to_everybody() -> None:
    with serve({"Get": (unary(echo), None)}) as server:
        error = fails(server.unary("Get"), text(), metadata=(("authorization", "Bearer ADMIN"),))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert fails(server.unary("Get"), text()).code() is grpc.StatusCode.UNAUTHENTICATED


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    check_policies(POLICIES, served_files())


def test_a_method_without_a_row_and_a_row_without_a_method_are_named() -> None:
    check, typo = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Cheque"
    policies = {name: row for name, row in POLICIES.items() if name.startswith("/grpc.health")}
    policies[typo] = policies.pop(check)

    with pytest.raises(PolicyTableError, match=f"{check} has no policy row; policy row {typo} names no method"):
        check_policies(policies, [health_pb2.DESCRIPTOR])


def test_files_without_services_need_no_rows() -> None:
    check_policies({}, [wrappers_pb2.DESCRIPTOR])


def test_every_changing_method_needs_the_editor_role() -> None:
    service = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]
    changing = {rpc.name for rpc in service.methods if "change_reason" in rpc.input_type.fields_by_name}
    reading = {name.rpartition("/")[2] for name, row in POLICIES.items() if row.access is Role.VIEWER}

    assert changing & reading == {"ChangePassword", "CreateApiToken", "RevokeApiToken"}
