"""A name is no identity: what belongs to an admin user does not pass to the next one of that name."""

from uuid import uuid4

import grpc
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_user_pb2 import ROLE_ADMIN, ROLE_VIEWER
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_client.v1.client_key_pb2 import CLIENT_KEY_TYPE_SIGNING, RATE_TIER_HIGH, ClientKey
from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords
from gatekeeper_grpc.domain.mutation import Intent
from tests.support.clients import TIMEOUT_S, Installation, Refusal, outcome_of
from tests.support.operators import PASSWORD, WRONG_CREDENTIALS, acting_as, enlisted, logged_in, manager, new_name

pytestmark = pytest.mark.promise("D10")

ODD_NAMES = ("Admin", "admin ", "\u0430dmin", "\u200b", "a\u202enimda", "tab\tand\nline", "x" * 128, "ann#7")
# bcrypt of "a" at cost 10, as earlier releases stored it.
SHORT_OLD_HASH = "$2b$10$tP6kYs47a9nk2n8ifp9jdunyNXDuwf0/51A04HQbSwXFeiKH52cpW"


def succeed(installation: Installation, username: str) -> None:
    """Delete an admin user, and create another one under the name."""
    manager(installation).DeleteAdminUser(pb.DeleteAdminUserRequest(username=username), timeout=TIMEOUT_S)
    enlisted(installation, username=username, role=ROLE_ADMIN)


def new_client_key(installation: Installation, username: str, request_id: str) -> pb.CreateClientKeyResponse:
    request = pb.CreateClientKeyRequest(
        client_key=ClientKey(name="checkout", tier=RATE_TIER_HIGH, type=CLIENT_KEY_TYPE_SIGNING), request_id=request_id
    )
    with acting_as(installation, username) as admin:
        return admin.CreateClientKey(request, timeout=TIMEOUT_S)


def test_a_namesake_gets_no_stored_answer_of_its_predecessor(installation: Installation) -> None:
    name, request_id = enlisted(installation, role=ROLE_ADMIN).username, str(uuid4())
    first, again = (new_client_key(installation, name, request_id) for _ in range(2))
    assert again == first

    succeed(installation, name)

    other = new_client_key(installation, name, request_id)
    assert other.client_key.key_id != first.client_key.key_id
    assert other.secret != first.secret


def test_twin_with_answers_stored_by_name_the_namesake_gets_the_secret(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Intent, "requester", property(lambda intent: f"admin:{intent.caller.username}" if intent.caller else "system")
    )
    name, request_id = enlisted(installation, role=ROLE_ADMIN).username, str(uuid4())
    first = new_client_key(installation, name, request_id)

    succeed(installation, name)

    assert new_client_key(installation, name, request_id).secret == first.secret


def test_the_audit_log_tells_namesakes_apart_and_finds_both_by_name(installation: Installation) -> None:
    first = enlisted(installation, role=ROLE_ADMIN)
    new_client_key(installation, first.username, "")
    succeed(installation, first.username)
    new_client_key(installation, first.username, "")
    pages = [
        manager(installation).ListAuditEntries(pb.ListAuditEntriesRequest(actor=actor), timeout=TIMEOUT_S).audit_entries
        for actor in (f"admin:{first.username}", f"admin:{first.username}#{first.admin_id}")
    ]

    second_id = logged_in_id(installation, first.username)
    assert second_id != first.admin_id
    assert [[entry.actor for entry in page] for page in pages] == [
        [f"admin:{first.username}#{second_id}", f"admin:{first.username}#{first.admin_id}"],
        [f"admin:{first.username}#{first.admin_id}"],
    ]


def logged_in_id(installation: Installation, username: str) -> int:
    page = manager(installation).ListAdminUsers(pb.ListAdminUsersRequest(page_size=1_000), timeout=TIMEOUT_S)
    (admin_id,) = [user.admin_id for user in page.admin_users if user.username == username]
    return admin_id


def test_a_namesake_does_not_wait_for_the_failed_logins_of_its_predecessor(installation: Installation) -> None:
    name = enlisted(installation).username
    for _ in range(3):
        assert outcome_of(lambda: logged_in(installation, name, "wrong")) == WRONG_CREDENTIALS
    locked_out = outcome_of(lambda: logged_in(installation, name))
    assert isinstance(locked_out, Refusal)
    assert locked_out.code is grpc.StatusCode.RESOURCE_EXHAUSTED

    succeed(installation, name)

    assert logged_in(installation, name).role == ROLE_ADMIN


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_stored_name_of_any_kind_logs_in_is_listed_and_deleted(installation: Installation, name: str) -> None:
    insert = """
        INSERT INTO admin_user (username, password_hash, role, create_time, update_time)
        VALUES (%s, %s, 'viewer', now(), now())
    """
    installation.execute(insert, name, Passwords(cost=MIN_COST).hash(PASSWORD))

    assert logged_in(installation, name).role == ROLE_VIEWER
    assert logged_in_id(installation, name)
    manager(installation).DeleteAdminUser(pb.DeleteAdminUserRequest(username=name), timeout=TIMEOUT_S)
    request = LoginRequest(username=name, password=PASSWORD)
    assert outcome_of(lambda: AuthServiceStub(installation.channels[None]).Login(request)) == WRONG_CREDENTIALS


def test_a_password_older_than_the_rules_logs_in_and_is_hashed_again(installation: Installation) -> None:
    name = enlisted(installation, username=new_name()).username
    find = "SELECT password_hash FROM admin_user WHERE username = %s"
    installation.execute("UPDATE admin_user SET password_hash = %s WHERE username = %s", SHORT_OLD_HASH, name)

    logged_in(installation, name, "a")

    ((hash_after,),) = installation.query(find, name)
    assert hash_after != SHORT_OLD_HASH
    assert Passwords(cost=MIN_COST).verify("a", hash_after)
    assert not Passwords(cost=MIN_COST).is_outdated(hash_after)
    assert logged_in(installation, name, "a").role
