"""The RPCs about admin users: what they do, every way in which they refuse, and what they must not say."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any
from uuid import uuid4

import bcrypt
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_ADMIN, ROLE_EDITOR, ROLE_VIEWER, AdminUser
from gatekeeper_client.v1.auth_service_pb2 import RefreshTokenRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.auth.lockout import LockoutRule
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import (
    TIMEOUT_S,
    UNAUTHENTICATED,
    Installation,
    Refusal,
    installed,
    invalid,
    outcome_of,
    race,
    refusal_of,
)
from tests.support.operators import PASSWORD, WRONG_CREDENTIALS, acting_as, enlisted, logged_in, manager, new_name
from tests.support.servers import KEYS

pytestmark = pytest.mark.promise("D3", "D5", "D7")

NEW_PASSWORD = "canary-new-password"
NEW_PASSWORDS = ("the first of two", "the second of two")


@pytest.fixture(autouse=True)
def forgiven(request: pytest.FixtureRequest) -> None:
    """All tests call from one address: failures of one must not count for the next."""
    if "installation" in request.fixturenames:
        guard = request.getfixturevalue("installation").server.login_guard
        guard._failures.clear()
        guard._times.clear()


@pytest.fixture
def alone(postgres: str) -> Iterator[Installation]:
    """An installation of this test's own."""
    with installed(postgres) as installation:
        yield installation


def create(installation: Installation, username: str, **fields: Any) -> pb.CreateAdminUserResponse:
    user = AdminUser(username=username, role=fields.pop("role", ROLE_EDITOR))
    request = pb.CreateAdminUserRequest(**{"admin_user": user, "password": PASSWORD, **fields})
    return manager(installation).CreateAdminUser(request, timeout=TIMEOUT_S)


def update(installation: Installation, user: AdminUser, *paths: str, **fields: Any) -> pb.UpdateAdminUserResponse:
    request = pb.UpdateAdminUserRequest(admin_user=user, update_mask=FieldMask(paths=paths), **fields)
    return manager(installation).UpdateAdminUser(request, timeout=TIMEOUT_S)


def delete(installation: Installation, username: str, **fields: Any) -> pb.DeleteAdminUserResponse:
    request = pb.DeleteAdminUserRequest(username=username, **fields)
    return manager(installation).DeleteAdminUser(request, timeout=TIMEOUT_S)


def listed(installation: Installation, username: str) -> list[AdminUser]:
    page = manager(installation).ListAdminUsers(pb.ListAdminUsersRequest(page_size=1000), timeout=TIMEOUT_S)
    assert page.revision == installation.revision()
    return [user for user in page.admin_users if user.username == username]


def last_admin(username: str) -> Refusal:
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, "LAST_ADMIN", {"username": username})


def event_names(installation: Installation, username: str) -> list[str]:
    request = pb.ListAuthEventsRequest(username=username)
    return [event.event for event in manager(installation).ListAuthEvents(request, timeout=TIMEOUT_S).auth_events]


# --- CreateAdminUser and ListAdminUsers -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [ROLE_VIEWER, ROLE_EDITOR, ROLE_ADMIN])
def test_created_admin_user_may_log_in_with_its_role(installation: Installation, role: Any) -> None:
    name = new_name()

    response = create(installation, name, role=role)

    assert (response.admin_user.username, response.admin_user.role, response.admin_user.enabled) == (name, role, True)
    assert response.admin_user.revision == response.revision == installation.revision()
    assert response.admin_user.etag
    assert response.admin_user.create_time == response.admin_user.update_time
    assert listed(installation, name) == [response.admin_user]
    assert logged_in(installation, name).role == role


@pytest.mark.parametrize("name", ["a", "7", "x" * 64, "ann.example@corp.test", "a-b_c"])
def test_name_is_1_to_64_plain_characters(installation: Installation, name: str) -> None:
    assert create(installation, name).admin_user.username == name
    assert logged_in(installation, name).role == ROLE_EDITOR
    delete(installation, name)


BAD_CREATES: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"admin_user": AdminUser(role=ROLE_EDITOR)}, "admin_user.username"),
    "long name": ({"admin_user": AdminUser(username="x" * 65, role=ROLE_EDITOR)}, "admin_user.username"),
    "capital in name": ({"admin_user": AdminUser(username="Ann", role=ROLE_EDITOR)}, "admin_user.username"),
    "space in name": ({"admin_user": AdminUser(username="admin ", role=ROLE_EDITOR)}, "admin_user.username"),
    "Cyrillic in name": ({"admin_user": AdminUser(username="\u0430dmin", role=ROLE_EDITOR)}, "admin_user.username"),
    "zero-width name": ({"admin_user": AdminUser(username="\u200b", role=ROLE_EDITOR)}, "admin_user.username"),
    "name that turns": ({"admin_user": AdminUser(username="a\u202enimda", role=ROLE_EDITOR)}, "admin_user.username"),
    "line in name": ({"admin_user": AdminUser(username="ann\n", role=ROLE_EDITOR)}, "admin_user.username"),
    "escape in name": ({"admin_user": AdminUser(username="a\x1b[2J", role=ROLE_EDITOR)}, "admin_user.username"),
    "dot before name": ({"admin_user": AdminUser(username=".ann", role=ROLE_EDITOR)}, "admin_user.username"),
    "NUL in name": ({"admin_user": AdminUser(username="a\0b", role=ROLE_EDITOR)}, "admin_user.username"),
    "no role": ({"admin_user": AdminUser(username="nobody")}, "admin_user.role"),
    "unknown role": ({"admin_user": AdminUser(username="nobody", role=99)}, "admin_user.role"),  # type: ignore[arg-type]
    "no password": ({"password": ""}, "password"),
    "short password": ({"password": "elevenchars"}, "password"),
    "long password": ({"password": "äb" * 513}, "password"),
    "one letter as password": ({"password": "a" * 20}, "password"),
    "name as password": (
        {"admin_user": AdminUser(username="ann.example", role=ROLE_EDITOR), "password": "Ann.Example-1"},
        "password",
    ),
    "product as password": ({"password": "gatekeeper-2026"}, "password"),
    "NUL in password": ({"password": "a\0b"}, "password"),
    "long reason": ({"change_reason": "x" * 1025}, "change_reason"),
    "bad request id": ({"request_id": "mine"}, "request_id"),
}


@pytest.mark.parametrize(("fields", "field"), BAD_CREATES.values(), ids=BAD_CREATES.keys())
def test_create_refuses_and_names_the_field(installation: Installation, fields: dict[str, Any], field: str) -> None:
    before = installation.revision()

    assert refusal_of(lambda: create(installation, "nobody", **fields)) == invalid(field)
    assert installation.revision() == before


def test_create_refuses_a_name_that_is_taken_and_keeps_its_password(installation: Installation) -> None:
    user = enlisted(installation)
    taken = Refusal(grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS", {"username": user.username})

    assert refusal_of(lambda: create(installation, user.username, password=NEW_PASSWORD)) == taken
    assert listed(installation, user.username) == [user]
    assert refusal_of(lambda: logged_in(installation, user.username, NEW_PASSWORD)) == WRONG_CREDENTIALS


def test_a_retry_gets_the_first_answer_and_another_password_is_refused(installation: Installation) -> None:
    name, request_id = new_name(), str(uuid4())

    first, second = (create(installation, name, request_id=request_id) for _ in range(2))

    assert first == second
    other = refusal_of(lambda: create(installation, name, request_id=request_id, password=NEW_PASSWORD))
    assert other == invalid("request_id")


def test_list_is_in_pages_by_name(installation: Installation) -> None:
    names = sorted(enlisted(installation).username for _ in range(3))
    found, token = [], ""
    while True:
        request = pb.ListAdminUsersRequest(page_size=2, page_token=token)
        page = manager(installation).ListAdminUsers(request, timeout=TIMEOUT_S)
        found += [user.username for user in page.admin_users]
        token = page.next_page_token
        if not token:
            break

    assert found == sorted(found)
    assert set(names) <= set(found)


@pytest.mark.parametrize(("fields", "field"), [({"page_size": 1001}, "page_size"), ({"page_token": "x"}, "page_token")])
def test_list_refuses_bad_pages(installation: Installation, fields: dict[str, Any], field: str) -> None:
    assert refusal_of(lambda: manager(installation).ListAdminUsers(pb.ListAdminUsersRequest(**fields))) == invalid(
        field
    )


# --- UpdateAdminUser --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("role", {"role": ROLE_VIEWER}, (ROLE_VIEWER, True)),
        ("role", {"role": ROLE_ADMIN}, (ROLE_ADMIN, True)),
        ("enabled", {"enabled": False}, (ROLE_EDITOR, False)),
        ("password", {}, (ROLE_EDITOR, True)),
    ],
)
def test_update_changes_what_the_mask_names_and_ends_all_sessions(
    installation: Installation, path: str, fields: dict[str, Any], expected: tuple[Any, bool]
) -> None:
    before = enlisted(installation)
    login = logged_in(installation, before.username)
    with acting_as(installation, before.username) as editor:
        wanted = AdminUser(username=before.username, etag=before.etag, **fields)
        after = update(installation, wanted, path, password=NEW_PASSWORD).admin_user

        flag = pb.CreateFlagRequest()
        flag.flag.key = new_name()
        assert refusal_of(lambda: editor.CreateFlag(flag)) == UNAUTHENTICATED

    assert (after.role, after.enabled, listed(installation, before.username)) == (*expected, [after])
    assert (after.etag != before.etag, after.revision > before.revision) == (True, True)
    auth = AuthServiceStub(installation.channels[None])
    refresh = RefreshTokenRequest(refresh_token=login.refresh_token)
    assert refusal_of(lambda: auth.RefreshToken(refresh)) == WRONG_CREDENTIALS


def test_password_is_reset_by_an_update_that_names_it_and_by_no_other(installation: Installation) -> None:
    user = enlisted(installation)

    update(installation, AdminUser(username=user.username, role=ROLE_VIEWER), "role", password=NEW_PASSWORD)
    assert refusal_of(lambda: logged_in(installation, user.username, NEW_PASSWORD)) == WRONG_CREDENTIALS

    update(installation, AdminUser(username=user.username), "password", password=NEW_PASSWORD)
    assert logged_in(installation, user.username, NEW_PASSWORD).role == ROLE_VIEWER
    assert refusal_of(lambda: logged_in(installation, user.username)) == WRONG_CREDENTIALS


def test_disabled_admin_user_may_log_in_when_it_is_enabled_again(installation: Installation) -> None:
    user = enlisted(installation)
    update(installation, AdminUser(username=user.username), "enabled")
    assert refusal_of(lambda: logged_in(installation, user.username)) == WRONG_CREDENTIALS

    update(installation, AdminUser(username=user.username, enabled=True), "enabled")

    assert logged_in(installation, user.username).role == ROLE_EDITOR


BAD_UPDATES: dict[str, tuple[AdminUser, tuple[str, ...], str]] = {
    "no mask": (AdminUser(username="x"), (), "update_mask"),
    "name": (AdminUser(username="x"), ("username",), "update_mask.paths[0]"),
    "unknown path": (AdminUser(username="x"), ("enabled", "colour"), "update_mask.paths[1]"),
    "etag": (AdminUser(username="x"), ("etag",), "update_mask.paths[0]"),
    "no role": (AdminUser(username="x"), ("role",), "admin_user.role"),
    "no name": (AdminUser(), ("enabled",), "admin_user.username"),
    "no password": (AdminUser(username="x"), ("password",), "password"),
    "name as password": (AdminUser(username="canary-password"), ("password",), "password"),
}


@pytest.mark.parametrize(("user", "paths", "field"), BAD_UPDATES.values(), ids=BAD_UPDATES.keys())
def test_update_refuses_and_names_the_field(
    installation: Installation, user: AdminUser, paths: tuple[str, ...], field: str
) -> None:
    password = user.username if len(user.username) > 1 else ""

    assert refusal_of(lambda: update(installation, user, *paths, password=password)) == invalid(field)


# --- DeleteAdminUser --------------------------------------------------------------------------------------------------


def test_a_deleted_admin_user_is_stopped_and_its_namesake_is_another(installation: Installation) -> None:
    old = enlisted(installation)
    with acting_as(installation, old.username) as editor:
        response = delete(installation, old.username, etag=old.etag)
        new = create(installation, old.username).admin_user

        flag = pb.CreateFlagRequest()
        flag.flag.key = new_name()
        assert refusal_of(lambda: editor.CreateFlag(flag)) == UNAUTHENTICATED

    assert response.revision == old.revision + 1
    assert new.etag != old.etag


@pytest.mark.parametrize("name", ["", "x" * 129, "a\0b"])
def test_delete_refuses_what_is_no_name(installation: Installation, name: str) -> None:
    assert refusal_of(lambda: delete(installation, name)) == invalid("username")


# --- the last admin ---------------------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[[Installation, str], object]] = {
    "deleted": delete,
    "disabled": lambda at, name: update(at, AdminUser(username=name), "enabled"),
    "demoted": lambda at, name: update(at, AdminUser(username=name, role=ROLE_EDITOR), "role"),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("validate_only", [False, True])
def test_last_enabled_admin_stays_one(
    installation: Installation, lose: Callable[[Installation, str], object], validate_only: bool
) -> None:
    enlisted(installation)
    idle = enlisted(installation, role=ROLE_ADMIN)
    update(installation, AdminUser(username=idle.username), "enabled")
    others = [user for user in _managers(installation) if user != "admin"]
    for name in others:
        delete(installation, name)

    assert refusal_of(lambda: lose(installation, "admin")) == last_admin("admin")
    assert _managers(installation) == ["admin"]


def _managers(installation: Installation) -> list[str]:
    rows = installation.query("SELECT username FROM admin_user WHERE enabled AND role = 'admin'")
    return [name for (name,) in rows]


def test_last_admin_may_be_given_another_password(alone: Installation) -> None:
    update(alone, AdminUser(username="admin", enabled=True, role=ROLE_ADMIN), "password", password=NEW_PASSWORD)

    assert logged_in(alone, "admin", NEW_PASSWORD).role == ROLE_ADMIN


def test_of_admins_who_race_to_disable_themselves_the_last_one_remains(alone: Installation) -> None:
    names = [enlisted(alone, role=ROLE_ADMIN).username for _ in range(3)]
    with ExitStack() as stack:
        stubs = {name: stack.enter_context(acting_as(alone, name)) for name in names}
        alone.execute("UPDATE admin_user SET enabled = false WHERE username = 'admin'")

        outcomes = race([partial(outcome_of, partial(_disable, stub, name)) for name, stub in stubs.items()])

    (left,) = _managers(alone)
    assert [outcome for outcome in outcomes if isinstance(outcome, Refusal)] == [last_admin(left)]


def _disable(stub: AdminServiceStub, name: str) -> object:
    request = pb.UpdateAdminUserRequest(admin_user=AdminUser(username=name), update_mask=FieldMask(paths=["enabled"]))
    return stub.UpdateAdminUser(request, timeout=TIMEOUT_S)


# --- ChangePassword ---------------------------------------------------------------------------------------------------


def change(stub: AdminServiceStub, current: str = PASSWORD, new: str = NEW_PASSWORD, **fields: Any) -> Any:
    request = pb.ChangePasswordRequest(current_password=current, new_password=new, **fields)
    return stub.ChangePassword(request, timeout=TIMEOUT_S)


@pytest.mark.parametrize("role", [ROLE_VIEWER, ROLE_EDITOR, ROLE_ADMIN])
def test_own_password_is_changed_and_all_own_tokens_are_void(installation: Installation, role: Any) -> None:
    user = enlisted(installation, role=role)
    login = logged_in(installation, user.username)
    with acting_as(installation, user.username) as own:
        response = change(own)

        assert response.revision == installation.revision()
        assert refusal_of(lambda: change(own, NEW_PASSWORD, PASSWORD)) == UNAUTHENTICATED
    auth = AuthServiceStub(installation.channels[None])
    refresh = RefreshTokenRequest(refresh_token=login.refresh_token)
    assert refusal_of(lambda: auth.RefreshToken(refresh)) == WRONG_CREDENTIALS
    assert refusal_of(lambda: logged_in(installation, user.username)) == WRONG_CREDENTIALS
    assert logged_in(installation, user.username, NEW_PASSWORD).role == role
    delete(installation, user.username)


def test_wrong_current_password_changes_nothing_and_is_recorded(installation: Installation) -> None:
    user = enlisted(installation)
    with acting_as(installation, user.username) as own:
        before = installation.revision()
        assert refusal_of(lambda: change(own, "wrong")) == WRONG_CREDENTIALS
        assert refusal_of(lambda: change(own, "wrong", validate_only=True)) == WRONG_CREDENTIALS

        assert (installation.revision(), logged_in(installation, user.username).role) == (before, ROLE_EDITOR)
    assert event_names(installation, user.username)[1:3] == ["password_change_failed"] * 2


@pytest.mark.parametrize(
    ("current", "new", "field"),
    [
        ("", "x", "current_password"),
        ("x", "", "new_password"),
        ("x", "elevenchars", "new_password"),
        ("x", "yz" * 513, "new_password"),
        ("x", "viewer-viewer", "new_password"),
        ("x", "twelve\0chars", "new_password"),
    ],
)
def test_change_names_a_field_that_cannot_be(installation: Installation, current: str, new: str, field: str) -> None:
    viewer = AdminServiceStub(installation.channels[Role.VIEWER])
    assert refusal_of(lambda: change(viewer, current, new)) == invalid(field)


def test_a_retried_password_change_gets_its_first_answer(installation: Installation) -> None:
    user, request_id = enlisted(installation), str(uuid4())
    with acting_as(installation, user.username) as own:
        first = change(own, request_id=request_id)
    with acting_as(installation, user.username, NEW_PASSWORD) as own:
        assert change(own, request_id=request_id) == first


def test_of_two_racing_changes_one_wins(installation: Installation) -> None:
    user = enlisted(installation)
    with acting_as(installation, user.username) as own:
        outcomes = race([partial(outcome_of, partial(change, own, new=new)) for new in NEW_PASSWORDS])

    assert outcomes.count(UNAUTHENTICATED) == 1
    assert [logs_in(installation, user.username, new) for new in NEW_PASSWORDS].count(True) == 1


def logs_in(installation: Installation, username: str, password: str) -> bool:
    return not isinstance(outcome_of(lambda: logged_in(installation, username, password)), Refusal)


# --- ListAuthEvents ---------------------------------------------------------------------------------------------------


def test_events_are_listed_newest_first_in_pages_and_by_filter(installation: Installation) -> None:
    user = enlisted(installation)
    refusal_of(lambda: logged_in(installation, user.username, "wrong"))
    logged_in(installation, user.username)
    stub = manager(installation)

    first = stub.ListAuthEvents(pb.ListAuthEventsRequest(username=user.username, page_size=1))
    token = first.next_page_token
    second = stub.ListAuthEvents(pb.ListAuthEventsRequest(username=user.username, page_size=1, page_token=token))
    failed = stub.ListAuthEvents(pb.ListAuthEventsRequest(username=user.username, event="login_failed"))

    assert [event.event for event in first.auth_events] == ["login_succeeded"]
    assert [event.event for event in second.auth_events] == ["login_failed"]
    assert (second.next_page_token, list(failed.auth_events)) == ("", list(second.auth_events))
    assert second.auth_events[0].peer.startswith("ipv4:127.0.0.1:")
    assert second.auth_events[0].create_time.ToDatetime() < first.auth_events[0].create_time.ToDatetime()


@pytest.mark.parametrize("field", ["username", "event"])
def test_events_refuse_a_filter_that_cannot_be(installation: Installation, field: str) -> None:
    request = pb.ListAuthEventsRequest(**{field: "a\0"})  # type: ignore[arg-type]
    assert refusal_of(lambda: manager(installation).ListAuthEvents(request)) == invalid(field)


# --- secrets: D7 ------------------------------------------------------------------------------------------------------


def test_no_password_or_hash_is_in_any_log_reply_document_or_event(
    alone: Installation, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with capture_logs() as structured:
        created = create(alone, "ada", request_id=str(uuid4()))
        answers: list[object] = [created]
        answers.append(refusal_of(lambda: create(alone, "ada")))
        wanted = AdminUser(username="ada", role=ROLE_VIEWER)
        answers.append(update(alone, wanted, "role", "password", password=NEW_PASSWORD, request_id=str(uuid4())))
        with acting_as(alone, "ada", NEW_PASSWORD) as own:
            answers.append(refusal_of(lambda: change(own, PASSWORD, "canary-third")))
            answers.append(change(own, NEW_PASSWORD, "canary-third", request_id=str(uuid4())))
        answers.append(delete(alone, "ada"))
        answers += list(manager(alone).ListAuthEvents(pb.ListAuthEventsRequest()).auth_events)

    rows = alone.contents()
    documents = [bytes(row[0]) for row in alone.query("SELECT document FROM audit_documents")]
    seen = f"{structured} {caplog.text} {capfd.readouterr()} {answers} {rows} {documents}"
    assert "ada" in seen
    canaries = [text for word in (PASSWORD, NEW_PASSWORD, "canary-third") for text in (word, word.encode().hex())]
    assert [canary for canary in [*canaries, "$2b$", b"$2b$".hex(), "password_hash"] if canary in seen] == []
    assert [json.loads(document)["password_changed"] for document in documents] == [False, True, True, False]


def test_stored_answer_gives_no_way_to_test_a_guessed_password(alone: Installation) -> None:
    """A bare hash of the request would: SHA-256 is a million times faster than bcrypt."""
    create(alone, "ada", request_id=str(uuid4()))

    ((result,),) = alone.query("SELECT result FROM idempotency_keys")
    columns = [name for (name,) in alone.query(_COLUMNS)]

    assert json.loads(KEYS.data.open(bytes(result)))["result"]["username"] == "ada"
    assert "request_hash" not in columns


_COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_name = 'idempotency_keys'"


# --- hashing holds nobody up ------------------------------------------------------------------------------------------


def test_no_password_is_hashed_while_the_head_is_locked(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[bool] = []
    user = enlisted(installation)
    with acting_as(installation, user.username) as own:
        for name in ("hashpw", "checkpw"):
            _spy(monkeypatch, name, lambda: locked.append(_head_is_locked(installation)))
        create(installation, new_name())
        update(installation, AdminUser(username=enlisted(installation).username), "password", password=NEW_PASSWORD)
        change(own)

    assert locked == [False] * 5


def _spy(monkeypatch: pytest.MonkeyPatch, name: str, observe: Callable[[], None]) -> None:
    real = getattr(bcrypt, name)

    def spying(*args: Any) -> Any:
        observe()
        return real(*args)

    monkeypatch.setattr(bcrypt, name, spying)


def _head_is_locked(installation: Installation) -> bool:
    with installation.server.database.write() as conn:
        return not conn.execute("SELECT revision FROM revision_head FOR UPDATE SKIP LOCKED").fetchall()


@pytest.mark.promise("C3")
def test_flood_of_logins_does_not_keep_an_admin_from_disabling_another(installation: Installation) -> None:
    """On their pool, the call would be refused with most of the flood."""
    user = enlisted(installation)
    flood = [partial(outcome_of, partial(logged_in, installation, new_name())) for _ in range(20)]
    act = partial(outcome_of, partial(update, installation, AdminUser(username=user.username), "enabled"))

    *answers, disabled = race([*flood, act])

    codes = {answer.code for answer in answers if isinstance(answer, Refusal)}
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    assert isinstance(disabled, pb.UpdateAdminUserResponse)


def test_wrong_passwords_lock_the_peer_out_of_the_account_and_are_recorded(alone: Installation) -> None:
    user = enlisted(alone)
    for _ in range(LockoutRule().free_tries):
        assert refusal_of(lambda: logged_in(alone, user.username, "wrong")) == WRONG_CREDENTIALS

    known = refusal_of(lambda: logged_in(alone, user.username))
    for _ in range(LockoutRule().free_tries):
        assert refusal_of(lambda: logged_in(alone, "nobody", "wrong")) == WRONG_CREDENTIALS
    unknown = refusal_of(lambda: logged_in(alone, "nobody", "wrong"))

    exhausted = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED", {})
    assert (known, unknown) == (exhausted, exhausted)
    assert event_names(alone, user.username) == ["locked_out", *["login_failed"] * 3]
