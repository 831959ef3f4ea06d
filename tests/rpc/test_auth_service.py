"""AuthService through a real server, the real interceptors and the generated client."""

import base64
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import bcrypt
import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # Published without py.typed.
from grpc_status import rpc_status
from structlog.testing import capture_logs

from gatekeeper_client.v1.admin_user_pb2 import ROLE_ADMIN
from gatekeeper_client.v1.auth_service_pb2 import (
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    RefreshTokenRequest,
    RefreshTokenResponse,
)
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub, add_AuthServiceServicer_to_server
from gatekeeper_grpc.auth.keys import KeyRing
from gatekeeper_grpc.auth.lockout import LoginGuard
from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords
from gatekeeper_grpc.auth.sessions import Sessions
from gatekeeper_grpc.auth.tokens import AccessTokens
from gatekeeper_grpc.domain.caller import Caller, Role
from gatekeeper_grpc.interceptors.chain import Stages
from gatekeeper_grpc.servicers.auth import AuthServicer
from gatekeeper_grpc.store.logins import LoginStore
from gatekeeper_grpc.store.postgres.database import Database
from gatekeeper_grpc.transport.admission import CallPools, PoolName
from tests.support.clients import outcome_of, race

pytestmark = pytest.mark.promise("D3", "D4", "D7")

PASSWORD = "canary-password"
SECRET = "canary-secret-" + "s" * 32
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running AuthService with one admin user, `admin`."""

    database: Database
    access_tokens: AccessTokens
    stub: AuthServiceStub

    def log_in(self, username: str = "admin", password: str = PASSWORD) -> LoginResponse:
        return self.stub.Login(LoginRequest(username=username, password=password), timeout=TIMEOUT_S)

    def refresh(self, token: str) -> Any:
        return self.stub.RefreshToken(RefreshTokenRequest(refresh_token=token), timeout=TIMEOUT_S)

    def log_out(self, token: str) -> None:
        self.stub.Logout(LogoutRequest(refresh_token=token), timeout=TIMEOUT_S)

    def events(self) -> list[str]:
        with self.database.read() as conn:
            return [event for (event,) in conn.execute("SELECT event FROM auth_events ORDER BY event_id")]


@pytest.fixture
def service(database: Database, tmp_path: Path) -> Iterator[Service]:
    logins = LoginStore(database)
    passwords = Passwords(cost=MIN_COST)
    access_tokens = AccessTokens(KeyRing.parse(f"k1:{SECRET}"))
    logins.ensure_first_admin("admin", passwords.hash(PASSWORD))
    pools = CallPools()
    stages = Stages(verify_token=access_tokens.verify, pools=pools)
    server = grpc.server(pools[PoolName.OPERATIONS], interceptors=[stages])
    add_AuthServiceServicer_to_server(AuthServicer(Sessions(logins, passwords, access_tokens, LoginGuard())), server)
    address = f"unix:{tmp_path}/auth.sock"
    server.add_insecure_port(address)
    server.start()
    with grpc.insecure_channel(address) as channel:
        yield Service(database=database, access_tokens=access_tokens, stub=AuthServiceStub(channel))
    server.stop(grace=None).wait(TIMEOUT_S)
    pools.close()


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return failed.value.code(), failed.value.details()


REFUSED = (grpc.StatusCode.UNAUTHENTICATED, "these credentials are not valid")


# --- Login ------------------------------------------------------------------------------------------------------------


def test_login_issues_an_access_token_of_15_minutes_and_a_refresh_token(service: Service) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    response = service.log_in()
    after = datetime.now(UTC)

    caller = service.access_tokens.verify(response.access_token)
    assert caller == Caller(
        admin_id=caller.admin_id, username="admin", role=Role.ADMIN, token_epoch=1, session_id=caller.session_id
    )
    assert response.role == ROLE_ADMIN
    access_end = response.access_token_expire_time.ToDatetime(tzinfo=UTC)
    refresh_end = response.refresh_token_expire_time.ToDatetime(tzinfo=UTC)
    assert before <= access_end - timedelta(minutes=15) <= after
    assert before <= refresh_end - timedelta(days=30) <= after


def test_told_expiry_is_the_one_in_the_token(service: Service) -> None:
    response = service.log_in()

    payload = response.access_token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["exp"] == response.access_token_expire_time.seconds
    assert response.access_token_expire_time.nanos == 0


@pytest.mark.parametrize(
    ("username", "password"),
    [
        pytest.param("admin", "wrong", id="wrong password"),
        pytest.param("nobody", PASSWORD, id="unknown user"),
        pytest.param("Admin", PASSWORD, id="name in other case"),
        pytest.param("admin\0", PASSWORD, id="NUL in name"),
        pytest.param("a" * 100_000, PASSWORD, id="long name"),
        pytest.param("admin", "p" * 73, id="long password"),
        pytest.param("admin", "p" * (1 << 20), id="password of a mebibyte"),
        pytest.param("admin", f"{PASSWORD}\0{PASSWORD}", id="NUL in password"),
        pytest.param("disabled", PASSWORD, id="disabled"),
        pytest.param("broken", PASSWORD, id="malformed hash"),
    ],
)
def test_every_failed_login_gets_the_same_answer_for_the_same_work(
    service: Service, monkeypatch: pytest.MonkeyPatch, username: str, password: str
) -> None:
    with service.database.write() as conn:
        conn.execute("""
            INSERT INTO admin_user (username, password_hash, role, enabled, create_time, update_time)
            SELECT 'disabled', password_hash, 'admin', false, now(), now() FROM admin_user
            UNION ALL SELECT 'broken', 'no hash', 'admin', true, now(), now()
        """)
    checkpw = Mock(wraps=bcrypt.checkpw)
    monkeypatch.setattr(bcrypt, "checkpw", checkpw)

    assert refusal(lambda: service.log_in(username, password)) == REFUSED
    assert [bytes(call.args[1])[:7] for call in checkpw.call_args_list] == [b"$2b$10$"]
    assert service.events() == ["first_admin_created", "login_failed"]


@pytest.mark.parametrize(("username", "password", "field"), [("", PASSWORD, "username"), ("admin", "", "password")])
def test_empty_field_of_a_login_is_named(service: Service, username: str, password: str, field: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        service.log_in(username, password)

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violated_fields(failed.value) == [field]
    assert service.events() == ["first_admin_created"]


def test_a_message_that_is_longer_than_any_credential_is_refused(service: Service) -> None:
    issued, text = service.log_in(), "x" * (2 << 20)
    for call in (
        lambda: service.log_in("admin", text),
        lambda: service.refresh(text),
        lambda: service.log_out(text),
    ):
        code, details = refusal(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "request must be at most" in str(details)
    assert service.refresh(issued.refresh_token).access_token


@pytest.mark.parametrize("size", [44, 1 << 20])
def test_a_refresh_token_that_is_longer_than_any_is_unknown(service: Service, size: int) -> None:
    issued = service.log_in()
    longer = issued.refresh_token.ljust(size, "x")

    service.log_out(longer)
    assert refusal(lambda: service.refresh(longer)) == REFUSED
    assert service.refresh(issued.refresh_token).access_token


def violated_fields(error: Any) -> list[str]:
    """The fields named in the `BadRequest` of an error."""
    bad_request = error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(error).details:
        if detail.Is(bad_request.DESCRIPTOR):
            detail.Unpack(bad_request)
    return [violation.field for violation in bad_request.field_violations]


# --- RefreshToken and Logout ------------------------------------------------------------------------------------------


def test_refresh_gives_new_tokens_with_the_role_and_epoch_of_now(service: Service) -> None:
    first = service.log_in()
    with service.database.write() as conn:
        conn.execute("UPDATE admin_user SET role = 'viewer', token_epoch = 2")

    second = service.refresh(first.refresh_token)

    caller = service.access_tokens.verify(second.access_token)
    assert (caller.role, caller.token_epoch, second.role) == (Role.VIEWER, 2, Role.VIEWER)
    assert second.refresh_token not in ("", first.refresh_token)
    assert second.refresh_token_expire_time.ToDatetime() >= first.refresh_token_expire_time.ToDatetime()


@pytest.mark.parametrize(("days", "left_days"), [(59, 30), (80, 10), (91, None)])
def test_a_session_ends_90_days_after_its_login_refreshed_or_not(
    service: Service, days: int, left_days: int | None
) -> None:
    first = service.log_in()
    with service.database.write() as conn:
        conn.execute("UPDATE refresh_tokens SET login_time = now() - make_interval(days => %s)", [days])

    if left_days is None:
        assert refusal(lambda: service.refresh(first.refresh_token)) == REFUSED
    else:
        left = service.refresh(first.refresh_token).refresh_token_expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
        assert timedelta(days=left_days - 1) < left <= timedelta(days=left_days)


def test_reuse_of_a_refresh_token_ends_the_login(service: Service) -> None:
    first = service.log_in()
    second = service.refresh(first.refresh_token)
    third = service.refresh(second.refresh_token)

    assert refusal(lambda: service.refresh(first.refresh_token)) == REFUSED
    assert refusal(lambda: service.refresh(third.refresh_token)) == REFUSED
    assert service.events()[1:] == ["login_succeeded", "refresh_reused"]


def test_a_refresh_whose_answer_was_lost_may_be_repeated_once(service: Service) -> None:
    first = service.log_in()
    lost = service.refresh(first.refresh_token)

    again = service.refresh(first.refresh_token)

    assert again.refresh_token == lost.refresh_token
    assert again.refresh_token_expire_time == lost.refresh_token_expire_time
    assert refusal(lambda: service.refresh(first.refresh_token)) == REFUSED
    assert refusal(lambda: service.refresh(again.refresh_token)) == REFUSED
    assert service.events()[1:] == ["login_succeeded", "refresh_repeated", "refresh_reused"]


def test_of_32_racing_refreshes_one_wins_and_the_login_ends(service: Service) -> None:
    login = service.log_in()

    outcomes = race([partial(outcome_of, partial(service.refresh, login.refresh_token)) for _ in range(32)])

    tokens = {outcome.refresh_token for outcome in outcomes if isinstance(outcome, RefreshTokenResponse)}
    assert len(tokens) == 1
    assert refusal(lambda: service.refresh(tokens.pop())) == REFUSED
    assert service.events()[-1] == "refresh_reused"


def test_logout_ends_the_login_without_an_access_token_and_may_be_repeated(service: Service) -> None:
    login = service.log_in()

    service.log_out(login.refresh_token)
    service.log_out(login.refresh_token)

    assert refusal(lambda: service.refresh(login.refresh_token)) == REFUSED
    assert service.events()[1:] == ["login_succeeded", "logged_out"]


@pytest.mark.parametrize("act", ["refresh", "log_out"])
def test_empty_refresh_token_is_named(service: Service, act: str) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        getattr(service, act)("")

    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violated_fields(failed.value) == ["refresh_token"]


def test_access_token_is_no_refresh_token(service: Service) -> None:
    login = service.log_in()

    assert refusal(lambda: service.refresh(login.access_token)) == REFUSED


# --- secrets: D7 ------------------------------------------------------------------------------------------------------


def test_no_password_or_token_appears_in_logs_errors_or_rows(
    service: Service, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with capture_logs() as structured:
        first = service.log_in()
        second = service.refresh(first.refresh_token)
        answers = [
            refusal(lambda: service.log_in("admin", f"{PASSWORD}!")),
            refusal(lambda: service.log_in("nobody", PASSWORD)),
            service.refresh(first.refresh_token).role,
            refusal(lambda: service.refresh(first.refresh_token)),
            refusal(lambda: service.refresh(second.access_token)),
        ]
        service.log_out(second.refresh_token)

    seen = f"{structured} {caplog.text} {capfd.readouterr()} {answers} {everything_stored(service.database)}"
    secrets = [PASSWORD, SECRET, first.access_token, second.access_token, first.refresh_token, second.refresh_token]
    assert "admin" in seen
    assert [secret for secret in secrets if secret in seen or secret.encode().hex() in seen] == []
    # Nor a part of a token.
    assert first.access_token.split(".")[2] not in seen


def everything_stored(database: Database) -> str:
    with database.read() as conn:
        return str(
            conn.execute("""
                SELECT a::text FROM admin_user a
                UNION ALL SELECT t::text FROM refresh_tokens t
                UNION ALL SELECT e::text FROM auth_events e
            """).fetchall()
        )
