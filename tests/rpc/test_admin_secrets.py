"""No secret reaches the log: whatever goes wrong, in the format for machines and in the one for people."""

import io
import json
from collections.abc import Iterator

import grpc
import pytest
import structlog

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.auth_service_pb2 import LoginRequest, LoginResponse
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.auth.passwords import MIN_COST, Passwords
from gatekeeper_grpc.operations.logs import configure_logs
from tests.support.clients import (
    UNAUTHENTICATED,
    Installation,
    Refusal,
    installed,
    outcome_of,
)
from tests.support.mutations import MUTATIONS, flag_to_mutate
from tests.support.servers import connect

pytestmark = pytest.mark.promise("D7")

PASSWORD = "canary-password"
WRONG_PASSWORD = "canary-typo"
FORGED_TOKEN = "canary-forgery"


@pytest.fixture(params=["json", "console"])
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """All that is logged from now on, in one format, at the most talkative level."""
    written, before = io.StringIO(), structlog.get_config()
    monkeypatch.setattr("sys.stderr", written)
    configure_logs(level="DEBUG", log_format=request.param)
    # Loggers are their modules': one that is kept would go on writing here after this test.
    structlog.configure(cache_logger_on_first_use=False)
    yield written
    structlog.configure(**before)


@pytest.fixture
def installation(log: io.StringIO, postgres: str) -> Iterator[Installation]:
    """An installation whose editor has a password."""
    with installed(postgres) as installation:
        password_hash = Passwords(cost=MIN_COST).hash(PASSWORD)
        installation.execute("UPDATE admin_user SET password_hash = %s WHERE username = 'editor'", password_hash)
        yield installation


def log_in(installation: Installation, password: str) -> LoginResponse:
    auth = AuthServiceStub(installation.channels[None])
    return auth.Login(LoginRequest(username="editor", password=password))


def update_with(installation: Installation, token: str, key: str) -> object:
    """Update a flag with this access token."""
    with connect(installation.server, token=token) as channel:
        return outcome_of(lambda: MUTATIONS["UpdateFlag"].ask(installation, key, caller=AdminServiceStub(channel)))


def leaked(secrets: list[str], *seen: str) -> list[str]:
    """Return the secrets of which the beginning can be read: renderers cut long values."""
    return [secret for secret in secrets if any(secret[:32] in text for text in seen)]


def test_no_password_and_no_token_is_logged_answered_or_stored(installation: Installation, log: io.StringIO) -> None:
    key = flag_to_mutate(installation.admin).key
    tokens = log_in(installation, PASSWORD)

    answers = [
        update_with(installation, tokens.access_token, key),
        update_with(installation, tokens.refresh_token, key),
        update_with(installation, FORGED_TOKEN, key),
        outcome_of(lambda: log_in(installation, WRONG_PASSWORD)),
    ]

    assert isinstance(answers[0], pb.UpdateFlagResponse)
    assert answers[1:] == [UNAUTHENTICATED] * 3
    assert log.getvalue().count("rpc ") + log.getvalue().count('"rpc"') >= len(answers)
    secrets = [PASSWORD, WRONG_PASSWORD, FORGED_TOKEN, tokens.access_token, tokens.refresh_token]
    assert leaked(secrets, log.getvalue(), str(answers), json.dumps(installation.contents())) == []


def test_not_even_the_traceback_of_a_fault_shows_a_secret(
    installation: Installation, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    key = flag_to_mutate(installation.admin).key
    tokens = log_in(installation, PASSWORD)
    monkeypatch.setattr("gatekeeper_grpc.store.mutations._record", fault)
    monkeypatch.setattr("gatekeeper_grpc.auth.sessions.Sessions.log_in", fault)

    answers = [
        update_with(installation, tokens.access_token, key),
        outcome_of(lambda: log_in(installation, PASSWORD)),
    ]

    assert [answer.code for answer in answers if isinstance(answer, Refusal)] == [grpc.StatusCode.INTERNAL] * 2
    assert log.getvalue().count("out of luck") >= 2
    assert leaked([PASSWORD, tokens.access_token, tokens.refresh_token], log.getvalue(), str(answers)) == []
