"""An admin user who loses a right neither reads nor writes any more, on any instance, though the token is valid."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.wrappers_pb2 import StringValue

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_ADMIN, ROLE_EDITOR, AdminUser
from gatekeeper_client.v1.auth_service_pb2 import LogoutRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.auth.checkpoints import CheckpointSigner
from gatekeeper_grpc.domain.caller import caller_if_any
from gatekeeper_grpc.domain.errors import Unauthenticated
from gatekeeper_grpc.interceptors import chain
from gatekeeper_grpc.interceptors.policy import POLICIES
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store.postgres import caller_check
from gatekeeper_grpc.store.postgres import database as database_module
from gatekeeper_grpc.store.postgres.database import Database
from tests.support.clients import (
    SERVICE,
    TIMEOUT_S,
    UNAUTHENTICATED,
    Installation,
    installed,
    outcome_of,
    refused_by,
    send,
)
from tests.support.mutations import MUTATIONS
from tests.support.operators import PASSWORD, enlisted, logged_in, manager
from tests.support.reads import READS, reading_requests
from tests.support.servers import KEYS, connect, settings_for_tests
from tests.support.stages import EDIT, EDITOR_TOKEN, echo, fails, serve, stream, text, unary

pytestmark = pytest.mark.promise("F3")

NEW_PASSWORD = "another canary-password"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Two instances on one database."""

    installation: Installation
    second: GatekeeperServer
    requests: dict[str, Any]

    def outcomes(self, token: str) -> dict[str, object]:
        """Call every RPC on both instances with one access token; return each answer or refusal."""
        outcomes: dict[str, object] = {}
        for number, server in enumerate((self.installation.server, self.second), start=1):
            with connect(server, token=token) as channel:
                stub = AdminServiceStub(channel)
                for rpc, request in self.requests.items():
                    outcomes[f"{rpc} {number}"] = outcome_of(partial(send, stub, rpc, request))
        return outcomes


@pytest.fixture(scope="module")
def fleet(postgres: str) -> Iterator[Fleet]:
    keys = replace(KEYS, audit=CheckpointSigner(bytes(32)))
    with installed(postgres) as installation, ExitStack() as stack:
        second = GatekeeperServer(settings_for_tests(refresh_interval_s=0.1), dsn=installation.dsn, keys=keys)
        second.start()
        stack.callback(second.stop)
        writes = {rpc: mutation.request(mutation.make(installation)) for rpc, mutation in MUTATIONS.items()}
        end_nobody = {"RevokeSession": pb.RevokeSessionRequest(session_id=str(UUID(int=1)))}
        requests = reading_requests(installation) | writes | end_nobody
        yield Fleet(installation=installation, second=second, requests=requests)


def updating(path: str, **fields: Any) -> Callable[[Installation, str, str], object]:
    """Return what changes one field of an admin user."""

    def update(installation: Installation, username: str, _token: str) -> object:
        user = AdminUser(**{"username": username, "role": ROLE_ADMIN, "enabled": True, **fields})
        request = pb.UpdateAdminUserRequest(admin_user=user, update_mask=FieldMask(paths=[path]), password=NEW_PASSWORD)
        return manager(installation).UpdateAdminUser(request, timeout=TIMEOUT_S)

    return update


def delete(installation: Installation, username: str, _token: str) -> object:
    return manager(installation).DeleteAdminUser(pb.DeleteAdminUserRequest(username=username), timeout=TIMEOUT_S)


def recreate(installation: Installation, username: str, token: str) -> object:
    delete(installation, username, token)
    return enlisted(installation, username=username, role=ROLE_ADMIN)


def change_own_password(installation: Installation, _username: str, token: str) -> object:
    request = pb.ChangePasswordRequest(current_password=PASSWORD, new_password=NEW_PASSWORD)
    with connect(installation.server, token=token) as channel:
        return AdminServiceStub(channel).ChangePassword(request, timeout=TIMEOUT_S)


def log_out(installation: Installation, username: str, _token: str) -> object:
    """End the one session of an admin user by its newest refresh token."""
    auth = AuthServiceStub(installation.channels[None])
    return auth.Logout(LogoutRequest(refresh_token=REFRESH_TOKENS[username]), timeout=TIMEOUT_S)


def end_session(installation: Installation, username: str, token: str) -> object:
    with connect(installation.server, token=token) as channel:
        stub = AdminServiceStub(channel)
        sessions = stub.ListSessions(pb.ListSessionsRequest(username=username), timeout=TIMEOUT_S).sessions
        (own,) = [session.session_id for session in sessions if session.current]
        return stub.RevokeSession(pb.RevokeSessionRequest(session_id=own), timeout=TIMEOUT_S)


def end_sessions_of(installation: Installation, username: str) -> object:
    stub = manager(installation)
    (session,) = stub.ListSessions(pb.ListSessionsRequest(username=username), timeout=TIMEOUT_S).sessions
    return stub.RevokeSession(pb.RevokeSessionRequest(session_id=session.session_id), timeout=TIMEOUT_S)


REFRESH_TOKENS: dict[str, str] = {}
"""By username: the refresh token of the session that a test stops."""

STOPS: dict[str, Callable[[Installation, str, str], object]] = {
    "demoted": updating("role", role=ROLE_EDITOR),
    "disabled": updating("enabled", enabled=False),
    "password reset by an admin": updating("password"),
    "own password changed": change_own_password,
    "logged out": log_out,
    "session ended by itself": end_session,
    "session ended by an admin": lambda installation, username, _token: end_sessions_of(installation, username),
    "deleted": delete,
    "deleted and created again": recreate,
}


def test_every_rpc_of_the_service_is_called() -> None:
    assert READS.keys() | MUTATIONS.keys() | {"RevokeSession"} == {rpc.name for rpc in SERVICE.methods}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())
def test_no_rpc_of_any_instance_serves_a_token_that_lost_its_rights(
    fleet: Fleet, stop: Callable[[Installation, str, str], object]
) -> None:
    user = enlisted(fleet.installation, role=ROLE_ADMIN)
    login = logged_in(fleet.installation, user.username)
    token, REFRESH_TOKENS[user.username] = login.access_token, login.refresh_token

    stop(fleet.installation, user.username, token)

    expected = {f"{rpc} {number}": refused_by(rpc, UNAUTHENTICATED) for number in (1, 2) for rpc in fleet.requests}
    assert fleet.outcomes(token) == expected


def test_twin_without_the_check_in_reads_a_disabled_admin_user_reads_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = enlisted(fleet.installation, role=ROLE_ADMIN)
    token = logged_in(fleet.installation, user.username).access_token
    STOPS["disabled"](fleet.installation, user.username, token)
    monkeypatch.setattr(database_module, "require_current_caller", lambda _conn: None)

    outcomes = fleet.outcomes(token)

    assert {rpc for rpc in READS if outcomes[f"{rpc} 2"] != UNAUTHENTICATED} == set(READS)


SESSION_LOOKUP = "AND EXISTS (SELECT FROM refresh_tokens WHERE family_id = %(session_id)s AND admin_id = a.admin_id)"


@pytest.mark.parametrize("stop", [log_out, end_session])
def test_twin_without_the_session_lookup_an_ended_session_reads_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, stop: Callable[[Installation, str, str], object]
) -> None:
    user = enlisted(fleet.installation, role=ROLE_ADMIN)
    login = logged_in(fleet.installation, user.username)
    REFRESH_TOKENS[user.username] = login.refresh_token
    stop(fleet.installation, user.username, login.access_token)
    assert SESSION_LOOKUP in caller_check._IS_CURRENT
    monkeypatch.setattr(caller_check, "_IS_CURRENT", caller_check._IS_CURRENT.replace(SESSION_LOOKUP, ""))

    outcomes = fleet.outcomes(login.access_token)

    assert {rpc for rpc in READS if outcomes[f"{rpc} 2"] != UNAUTHENTICATED} == set(READS)


# --- What opens no transaction, and what lasts -----------------------------------------------------------------------


class Check:
    """Stands for the check in the database: refuses once `revoked` is set."""

    def __init__(self) -> None:
        self.revoked = Event()

    def __call__(self) -> None:
        assert caller_if_any() is not None
        if self.revoked.is_set():
            raise Unauthenticated.access_token()


def test_an_answer_without_a_transaction_is_checked_before_it_leaves() -> None:
    check = Check()
    with serve({"Get": (unary(echo), EDIT)}, check_caller=check) as server:
        assert server.unary("Get")(text(), metadata=EDITOR_TOKEN, timeout=TIMEOUT_S) == text()
        check.revoked.set()

        assert fails(server.unary("Get"), text(), metadata=EDITOR_TOKEN).code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_open_stream_ends_when_its_caller_loses_their_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "CALLER_CHECK_INTERVAL_S", 0.0)
    check, first_read = Check(), Event()

    def parts(_requests: Iterator[StringValue], _context: Any) -> Iterator[StringValue]:
        yield text("first")
        assert first_read.wait(TIMEOUT_S)
        yield text("second")

    with serve({"Parts": (stream(parts), EDIT)}, check_caller=check) as server:
        call = server.stream("Parts")(iter([text()]), metadata=EDITOR_TOKEN, timeout=TIMEOUT_S)
        assert next(call) == text("first")
        check.revoked.set()
        first_read.set()

        with pytest.raises(grpc.RpcError) as failure:
            next(call)

    assert failure.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_calls_without_a_token_are_not_checked(database: Database) -> None:
    database.check_caller()


def test_every_method_of_the_admin_service_needs_a_role() -> None:
    paths = {f"/{SERVICE.full_name}/{rpc.name}" for rpc in SERVICE.methods}

    assert {path for path in paths if not hasattr(POLICIES[path].access, "numerator")} == set()
