"""must_change_password: no login with the password that somebody else has set, until its owner has changed it."""

from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_EDITOR, AdminUser
from tests.support.clients import TIMEOUT_S, UNAUTHENTICATED, Installation, Refusal, invalid, refusal_of
from tests.support.operators import PASSWORD, WRONG_CREDENTIALS, acting_as, enlisted, logged_in, manager

pytestmark = pytest.mark.promise("D4")

NEW_PASSWORD = "another canary-password"


@pytest.fixture(autouse=True)
def forgiven(installation: Installation) -> None:
    """All tests call from one address: failures of one must not count for the next."""
    guard = installation.server.login_guard
    guard._failures.clear()
    guard._times.clear()


def change_required(username: str) -> Refusal:
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, "PASSWORD_CHANGE_REQUIRED", {"username": username})


def change(installation: Installation, **fields: Any) -> Any:
    """Change a password without an access token."""
    stub = AdminServiceStub(installation.channels[None])
    request = pb.ChangePasswordRequest(**{"current_password": PASSWORD, "new_password": NEW_PASSWORD, **fields})
    return stub.ChangePassword(request, timeout=TIMEOUT_S)


def set_by_update(installation: Installation) -> str:
    user = enlisted(installation)
    wanted = AdminUser(username=user.username, must_change_password=True)
    request = pb.UpdateAdminUserRequest(admin_user=wanted, update_mask=FieldMask(paths=["must_change_password"]))
    assert manager(installation).UpdateAdminUser(request, timeout=TIMEOUT_S).admin_user.must_change_password
    return user.username


def set_at_creation(installation: Installation) -> str:
    user = enlisted(installation, must_change_password=True)
    assert user.must_change_password
    return user.username


@pytest.mark.parametrize("make", [set_by_update, set_at_creation])
def test_a_login_waits_until_the_owner_has_changed_the_password(installation: Installation, make: Any) -> None:
    name = make(installation)
    assert refusal_of(lambda: logged_in(installation, name)) == change_required(name)
    assert refusal_of(lambda: logged_in(installation, name, "wrong")) == WRONG_CREDENTIALS

    response = change(installation, username=name)

    assert response.revision == installation.revision()
    assert logged_in(installation, name, NEW_PASSWORD).role == ROLE_EDITOR
    assert refusal_of(lambda: logged_in(installation, name)) == WRONG_CREDENTIALS


def test_it_is_off_unless_it_is_set(installation: Installation) -> None:
    user = enlisted(installation)

    assert not user.must_change_password
    assert logged_in(installation, user.username).role == ROLE_EDITOR


def test_setting_it_ends_the_sessions_of_the_admin_user(installation: Installation) -> None:
    user = enlisted(installation)
    with acting_as(installation, user.username) as stub:
        wanted = AdminUser(username=user.username, must_change_password=True)
        request = pb.UpdateAdminUserRequest(admin_user=wanted, update_mask=FieldMask(paths=["must_change_password"]))
        manager(installation).UpdateAdminUser(request, timeout=TIMEOUT_S)

        assert refusal_of(lambda: stub.ListFlags(pb.ListFlagsRequest(), timeout=TIMEOUT_S)) == UNAUTHENTICATED


REFUSED: dict[str, tuple[dict[str, str], Refusal]] = {
    "no name": ({"username": ""}, UNAUTHENTICATED),
    "no password": ({"current_password": ""}, UNAUTHENTICATED),
    "unknown name": ({"username": "nobody"}, WRONG_CREDENTIALS),
    "wrong password": ({"current_password": "wrong"}, WRONG_CREDENTIALS),
    "the same password": ({"new_password": PASSWORD}, invalid("new_password")),
    "short password": ({"new_password": "elevenchars"}, invalid("new_password")),
}


@pytest.mark.parametrize(("fields", "refusal"), REFUSED.values(), ids=REFUSED.keys())
def test_a_change_without_a_token_needs_name_and_password(
    installation: Installation, fields: dict[str, str], refusal: Refusal
) -> None:
    name = set_at_creation(installation)
    before = installation.revision()

    assert refusal_of(lambda: change(installation, **{"username": name, **fields})) == refusal
    assert installation.revision() == before
    assert refusal_of(lambda: logged_in(installation, name)) == change_required(name)


def test_a_change_that_is_only_checked_leaves_the_login_closed(installation: Installation) -> None:
    name = set_at_creation(installation)

    change(installation, username=name, validate_only=True)

    assert refusal_of(lambda: logged_in(installation, name)) == change_required(name)


def test_wrong_passwords_in_changes_count_as_failed_logins(installation: Installation) -> None:
    name = set_at_creation(installation)
    for _ in range(3):
        refusal_of(lambda: change(installation, username=name, current_password="wrong"))

    assert refusal_of(lambda: logged_in(installation, name)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
