"""API tokens: what they are, who makes, sees and revokes them, and that they may what their makers may."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from structlog.testing import capture_logs

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_ADMIN, ROLE_EDITOR, ROLE_VIEWER, AdminUser
from gatekeeper_client.v1.api_token_pb2 import ApiToken
from gatekeeper_client.v1.audit_pb2 import RESOURCE_TYPE_API_TOKEN
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.auth.api_tokens import ApiTokenCache
from gatekeeper_grpc.auth.credential_refresh import POLL_INTERVAL_S, CredentialRefresh
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.domain.mutation import Intent
from gatekeeper_grpc.lifecycle import server as server_module
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store import api_tokens
from gatekeeper_grpc.store.postgres import caller_check
from tests.support.clients import (
    TIMEOUT_S,
    UNAUTHENTICATED,
    Installation,
    created,
    denial,
    installed,
    invalid,
    new_key,
    no_api_token,
    outcome_of,
    refusal_of,
)
from tests.support.operators import PASSWORD, acting_as, enlisted, in_s, manager, new_token
from tests.support.servers import KEYS, StartServer, connect, settings_for_tests, token_for
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("D5", "D7", "F3")

DAY_S = 86_400


@contextmanager
def using(server: GatekeeperServer, secret: str) -> Iterator[AdminServiceStub]:
    with connect(server, token=secret) as channel:
        yield AdminServiceStub(channel)


def tokens_of(stub: AdminServiceStub, **fields: Any) -> dict[str, ApiToken]:
    request = pb.ListApiTokensRequest(page_size=1_000, **fields)
    return {token.token_id: token for token in stub.ListApiTokens(request, timeout=TIMEOUT_S).api_tokens}


def revoke(stub: AdminServiceStub, token_id: str, **fields: Any) -> pb.RevokeApiTokenResponse:
    return stub.RevokeApiToken(pb.RevokeApiTokenRequest(token_id=token_id, **fields), timeout=TIMEOUT_S)


def list_flags(stub: AdminServiceStub) -> pb.ListFlagsResponse:
    return stub.ListFlags(pb.ListFlagsRequest(page_size=1), timeout=TIMEOUT_S)


# --- Making, listing, revoking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_any_role_makes_tokens_that_work_at_once(installation: Installation, role: Role) -> None:
    maker = installation.admin_as(role)

    made = new_token(maker, name="ci.build-1", role=role.value, lives_s=DAY_S)

    token = made.api_token
    assert re.fullmatch(r"at_[0-9a-f]{20}", token.token_id)
    assert re.fullmatch(rf"gka_{token.token_id[3:]}_[A-Za-z0-9_-]{{43}}", made.secret)
    assert (token.name, token.role, token.username) == ("ci.build-1", role.value, role.name.lower())
    assert token.revision == made.revision == installation.revision()
    assert [token.HasField(name) for name in ("revoke_time", "last_used_time")] == [False, False]
    assert tokens_of(maker)[token.token_id] == token
    with using(installation.server, made.secret) as stub:
        assert list_flags(stub).revision == made.revision


def test_a_token_that_is_only_validated_is_not_made(installation: Installation) -> None:
    before = installation.contents()
    request = pb.CreateApiTokenRequest(
        api_token=ApiToken(name="a", role=ROLE_VIEWER, expire_time=in_s(60)), validate_only=True
    )

    response = installation.admin.CreateApiToken(request, timeout=TIMEOUT_S)

    assert (response.secret, response.api_token.token_id) == ("", "")
    assert installation.contents() == before


def test_a_role_above_the_makers_is_refused(installation: Installation) -> None:
    refusal = refusal_of(lambda: new_token(installation.admin, role=ROLE_ADMIN))

    assert refusal == denial(Role.EDITOR, Role.ADMIN)


BAD_TOKENS: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": ""}, "api_token.name"),
    "long name": ({"name": "x" * 65}, "api_token.name"),
    "odd name": ({"name": "ci build"}, "api_token.name"),
    "name like an id": ({"name": "ann#7"}, "api_token.name"),
    "no role": ({"role": 0}, "api_token.role"),
    "unknown role": ({"role": 77}, "api_token.role"),
    "no expiry": ({"expire_time": None}, "api_token.expire_time"),
    "expired": ({"expire_time": in_s(-1)}, "api_token.expire_time"),
    "too long": ({"expire_time": in_s(367 * DAY_S)}, "api_token.expire_time"),
    "no time": ({"expire_time": Timestamp(seconds=2**62)}, "api_token.expire_time"),
}


@pytest.mark.parametrize(("fields", "field"), BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
def test_what_is_wrong_with_a_new_token_is_named(
    installation: Installation, fields: dict[str, Any], field: str
) -> None:
    before = installation.contents()

    assert refusal_of(lambda: new_token(installation.admin, **fields)) == invalid(field)
    assert installation.contents() == before


def test_an_admin_user_has_a_limited_number_of_live_tokens(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_tokens, "MAX_API_TOKENS", 2)
    with acting_as(installation, enlisted(installation).username) as maker:
        first, _ = new_token(maker), new_token(maker)

        refusal = refusal_of(lambda: new_token(maker))
        revoke(maker, first.api_token.token_id)
        new_token(maker)

    assert (refusal.reason, refusal.metadata) == ("QUOTA_EXCEEDED", {"quota": "api_tokens", "limit": "2"})


def test_below_role_admin_only_own_tokens_are_seen_and_revoked(installation: Installation) -> None:
    of_admin = new_token(manager(installation)).api_token
    other = enlisted(installation).username
    with acting_as(installation, other) as stub:
        own = new_token(stub).api_token

        assert tokens_of(stub) == tokens_of(stub, username=other) == {own.token_id: own}
        assert refusal_of(lambda: tokens_of(stub, username="admin")) == denial(Role.EDITOR, Role.ADMIN)
        assert refusal_of(lambda: revoke(stub, of_admin.token_id)) == no_api_token(of_admin.token_id)
        assert refusal_of(lambda: revoke(stub, "at_none")) == no_api_token("at_none")
    assert tokens_of(manager(installation), username=other) == {own.token_id: own}
    assert revoke(manager(installation), own.token_id).api_token.HasField("revoke_time")


def test_pages_of_tokens_are_in_the_order_of_ids(installation: Installation) -> None:
    made = {new_token(manager(installation)).api_token.token_id for _ in range(3)}
    found: list[str] = []
    page = pb.ListApiTokensResponse(next_page_token="")
    for number in range(1_000):
        request = pb.ListApiTokensRequest(page_size=2, page_token=page.next_page_token)
        page = manager(installation).ListApiTokens(request, timeout=TIMEOUT_S)
        assert page.revision == installation.revision()
        found += [token.token_id for token in page.api_tokens]
        if not page.next_page_token:
            assert number > 0
            break

    assert found == sorted(found)
    assert made <= set(found)


@pytest.mark.parametrize("token_id", ["", "x" * 129, "\0"])
def test_revoke_names_an_id_that_is_none(installation: Installation, token_id: str) -> None:
    assert refusal_of(lambda: revoke(installation.admin, token_id)) == invalid("token_id")


def test_a_retry_of_a_creation_gets_the_same_secret(installation: Installation) -> None:
    request = pb.CreateApiTokenRequest(
        api_token=ApiToken(name="a", role=ROLE_VIEWER, expire_time=in_s(60)), request_id=str(uuid4())
    )

    first, again = (installation.admin.CreateApiToken(request, timeout=TIMEOUT_S) for _ in range(2))

    assert first == again


def test_the_secret_is_in_the_one_answer_and_nowhere_else(
    postgres: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with installed(postgres) as installation, capture_logs() as structured:
        made = new_token(installation.admin)
        with using(installation.server, made.secret) as stub:
            created(stub)
            refused = outcome_of(lambda: new_token(stub))
        revoked = revoke(installation.admin, made.api_token.token_id)
        rows = installation.contents()
        documents = [bytes(row[0]) for row in installation.query("SELECT document FROM audit_documents")]
        hashes = [bytes(row[0]) for row in installation.query("SELECT secret_hash FROM api_tokens")]

    seen = f"{structured} {caplog.text} {capfd.readouterr()} {revoked} {refused} {rows} {documents} {hashes}"
    random = made.secret.rpartition("_")[2]
    assert made.api_token.token_id in seen
    assert random not in seen
    assert random.encode().hex() not in seen


# --- Who acts --------------------------------------------------------------------------------------------------------


def test_audit_entries_say_that_a_token_acted_and_which(installation: Installation) -> None:
    made = new_token(installation.admin, name="deploy")
    with using(installation.server, made.secret) as stub:
        key = created(stub).key
    actor = f"token:deploy#{made.api_token.token_id}"

    for wanted in (actor, "token:deploy"):
        request = pb.ListAuditEntriesRequest(actor=wanted, page_size=1)
        (entry,) = manager(installation).ListAuditEntries(request, timeout=TIMEOUT_S).audit_entries
        assert (entry.actor, entry.action, entry.resource_key) == (actor, "CreateFlag", key)
    about = pb.ListAuditEntriesRequest(resource_type=RESOURCE_TYPE_API_TOKEN, resource_key=made.api_token.token_id)
    (creation,) = manager(installation).ListAuditEntries(about, timeout=TIMEOUT_S).audit_entries
    assert creation.actor == f"admin:editor#{made.api_token.admin_id}"
    assert '"username":"editor"' in creation.document


def test_a_read_of_a_person_says_that_a_token_read(installation: Installation) -> None:
    user_id = new_key()
    installation.admin.CreateUser(pb.CreateUserRequest(user=User(user_id=user_id)), timeout=TIMEOUT_S)
    made = new_token(installation.admin_as(Role.VIEWER), role=ROLE_VIEWER)

    with using(installation.server, made.secret) as stub:
        stub.GetUser(pb.GetUserRequest(user_id=user_id), timeout=TIMEOUT_S)

    events = pb.ListAuthEventsRequest(user_id=user_id)
    (event,) = manager(installation).ListAuthEvents(events, timeout=TIMEOUT_S).auth_events
    assert (event.username, event.actor) == ("viewer", f"token:deploy#{made.api_token.token_id}")


def create_once(stub: AdminServiceStub, key: str, request_id: str) -> pb.CreateFlagResponse:
    return stub.CreateFlag(pb.CreateFlagRequest(flag=Flag(key=key), request_id=request_id), timeout=TIMEOUT_S)


def test_a_token_gets_no_stored_answer_of_its_maker(installation: Installation) -> None:
    key, request_id = new_key(), str(uuid4())
    first = create_once(installation.admin, key, request_id)
    with using(installation.server, new_token(installation.admin).secret) as stub:
        refusal = refusal_of(lambda: create_once(stub, key, request_id))

    assert create_once(installation.admin, key, request_id) == first
    assert refusal.reason == "ALREADY_EXISTS"


def test_twin_with_answers_stored_by_maker_a_token_gets_them(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Intent, "requester", property(lambda intent: f"admin#{intent.caller.admin_id}"))
    key, request_id = new_key(), str(uuid4())
    first = create_once(installation.admin, key, request_id)
    with using(installation.server, new_token(installation.admin).secret) as stub:
        assert create_once(stub, key, request_id) == first


def test_the_last_use_is_written_rarely(installation: Installation) -> None:
    made = new_token(installation.admin)
    uses = installation.server.api_tokens.uses
    written: list[Timestamp] = []
    for _ in range(2):
        with using(installation.server, made.secret) as stub:
            list_flags(stub)
        uses.flush()
        written.append(tokens_of(installation.admin)[made.api_token.token_id].last_used_time)
    installation.execute("UPDATE api_tokens SET last_used_time = last_used_time - interval '11 minutes'")
    with using(installation.server, made.secret) as stub:
        list_flags(stub)
    uses.flush()

    assert written[0] == written[1]
    assert abs(written[0].seconds - time.time()) < 60
    later = tokens_of(installation.admin)[made.api_token.token_id]
    assert later.last_used_time.ToNanoseconds() > written[1].ToNanoseconds()
    assert later.revision == made.revision


# --- Refusals --------------------------------------------------------------------------------------------------------


def refused_tokens(server: GatekeeperServer) -> dict[str, float]:
    samples = (sample for family in server.metrics.collect() for sample in family.samples)
    return {s.labels["cause"]: s.value for s in samples if s.name == "gatekeeper_refused_api_tokens_total"}


def test_the_cause_of_a_refused_token_is_in_the_log_and_the_metric_alone(installation: Installation) -> None:
    made = new_token(installation.admin)
    token_id, revoked = made.api_token.token_id, new_token(installation.admin)
    revoke(installation.admin, revoked.api_token.token_id)
    sent = {
        "wrong_secret": made.secret[:-4] + "AAAA",
        "unknown_token": revoked.secret,
        "malformed": made.secret[:-1],
    }
    before = refused_tokens(installation.server)
    with capture_logs() as logs:
        refusals = [refusal_of(partial(answer_to, installation.server, secret)) for secret in sent.values()]

    assert refusals == [UNAUTHENTICATED] * 3
    causes = {log["cause"]: log.get("token_id") for log in logs if log["event"] == "api_token_refused"}
    assert causes == {"wrong_secret": token_id, "unknown_token": revoked.api_token.token_id, "malformed": None}
    assert [secret for secret in (made.secret, *sent.values()) if secret in str(logs)] == []
    assert refused_tokens(installation.server) == {**before, **{cause: before[cause] + 1 for cause in sent}}


def test_the_answer_to_a_refused_token_is_one_text(installation: Installation) -> None:
    made = new_token(installation.admin)
    answers = set()
    for secret in (made.secret[:-4] + "AAAA", made.secret[:-1], f"gka_{20 * '0'}_{43 * 'x'}", "neither"):
        with pytest.raises(grpc.RpcError) as refused:
            answer_to(installation.server, secret)
        answers.add(refused.value.details())

    assert len(answers) == 1


def answer_to(server: GatekeeperServer, secret: str) -> pb.ListFlagsResponse:
    with using(server, secret) as stub:
        return list_flags(stub)


# --- Never more than the maker ---------------------------------------------------------------------------------------


def change(installation: Installation, username: str, path: str, **fields: Any) -> None:
    user = AdminUser(username=username, **fields)
    request = pb.UpdateAdminUserRequest(admin_user=user, update_mask=FieldMask(paths=[path]))
    manager(installation).UpdateAdminUser(request, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def second(installation: Installation) -> Iterator[GatekeeperServer]:
    """Another instance."""
    server = GatekeeperServer(settings_for_tests(), dsn=installation.dsn, keys=KEYS)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def maker(installation: Installation) -> str:
    return enlisted(installation, role=ROLE_ADMIN).username


@pytest.fixture
def secret(installation: Installation, second: GatekeeperServer, maker: str) -> str:
    """An editor's token of an admin, which both instances know."""
    with acting_as(installation, maker) as stub:
        made = new_token(stub)
    assert eventually(lambda: accepts(second, made.secret))
    return made.secret


def accepts(server: GatekeeperServer, secret: str) -> bool:
    """Whether an instance knows a token, as far as it has heard."""
    with using(server, secret) as stub:
        return outcome_of(lambda: list_flags(stub)) != UNAUTHENTICATED


def writes(installation: Installation, second: GatekeeperServer, secret: str) -> list[object]:
    """Try to write with a token on both instances; return the outcomes, "written" for a success."""
    outcomes: list[object] = []
    for server in (installation.server, second):
        with using(server, secret) as stub:
            outcome = outcome_of(partial(created, stub))
            outcomes.append("written" if isinstance(outcome, Flag) else outcome)
    return outcomes


LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "disabled": ("enabled", {"enabled": False}),
    "demoted": ("role", {"role": ROLE_VIEWER}),
    "told to change the password": ("must_change_password", {"must_change_password": True}),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_what_a_maker_loses_its_token_loses_at_once_on_every_instance(
    installation: Installation, second: GatekeeperServer, maker: str, secret: str, loss: tuple[str, dict[str, Any]]
) -> None:
    assert writes(installation, second, secret) == ["written"] * 2

    path, fields = loss
    change(installation, maker, path, **fields)

    assert "written" not in writes(installation, second, secret)


def test_the_token_of_a_demoted_maker_acts_with_the_lower_role(
    installation: Installation, second: GatekeeperServer, maker: str, secret: str
) -> None:
    change(installation, maker, "role", role=ROLE_VIEWER)

    assert eventually(lambda: writes(installation, second, secret) == [denial(Role.VIEWER, Role.EDITOR)] * 2)
    assert accepts(installation.server, secret)


def test_a_maker_who_is_promoted_makes_its_token_no_stronger(
    installation: Installation, second: GatekeeperServer
) -> None:
    username = enlisted(installation, role=ROLE_EDITOR).username
    with acting_as(installation, username) as stub:
        made = new_token(stub, role=ROLE_VIEWER)

    change(installation, username, "role", role=ROLE_ADMIN)

    assert eventually(lambda: accepts(second, made.secret))
    assert writes(installation, second, made.secret) == [denial(Role.VIEWER, Role.EDITOR)] * 2


def test_the_token_of_a_disabled_maker_works_again_with_its_maker(
    installation: Installation, second: GatekeeperServer, maker: str, secret: str
) -> None:
    change(installation, maker, "enabled", enabled=False)
    assert writes(installation, second, secret) == [UNAUTHENTICATED] * 2

    change(installation, maker, "enabled", enabled=True)

    assert eventually(lambda: writes(installation, second, secret) == ["written"] * 2)


def test_a_namesake_of_a_deleted_maker_does_not_revive_its_token(
    installation: Installation, second: GatekeeperServer, maker: str, secret: str
) -> None:
    manager(installation).DeleteAdminUser(pb.DeleteAdminUserRequest(username=maker), timeout=TIMEOUT_S)
    assert writes(installation, second, secret) == [UNAUTHENTICATED] * 2
    enlisted(installation, username=maker, role=ROLE_ADMIN)

    for server in (installation.server, second):
        server.api_tokens.refresh()
    assert writes(installation, second, secret) == [UNAUTHENTICATED] * 2
    assert len(tokens_of(manager(installation), username=maker)) == 1


def test_a_token_survives_the_logout_and_the_new_password_of_its_maker(
    installation: Installation, second: GatekeeperServer, maker: str, secret: str
) -> None:
    with acting_as(installation, maker) as stub:
        request = pb.ChangePasswordRequest(current_password=PASSWORD, new_password="another canary-password")
        stub.ChangePassword(request, timeout=TIMEOUT_S)

    assert writes(installation, second, secret) == ["written"] * 2


# --- Revoked ---------------------------------------------------------------------------------------------------------


def nobody_refreshes(monkeypatch: pytest.MonkeyPatch, *servers: GatekeeperServer) -> None:
    """Keep the tokens in memory as they are."""
    for server in servers:
        monkeypatch.setattr(server.api_tokens, "refresh", lambda: None)


def test_a_revoked_token_is_refused_by_an_instance_that_has_not_heard(
    installation: Installation, second: GatekeeperServer, maker: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody_refreshes(monkeypatch, installation.server, second)
    token_id, before = f"at_{secret.split('_')[1]}", refused_tokens(second)

    revoke(manager(installation), token_id)

    with capture_logs() as logs:
        assert writes(installation, second, secret) == [UNAUTHENTICATED] * 2
        assert not accepts(second, secret)
    assert refused_tokens(second) == {**before, "lapsed": before["lapsed"] + 2}
    assert {(log["cause"], log["token_id"]) for log in logs if log["event"] == "api_token_refused"} == {
        ("lapsed", token_id)
    }


def test_twin_without_the_check_in_the_database_it_is_accepted(
    installation: Installation, second: GatekeeperServer, maker: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody_refreshes(monkeypatch, installation.server, second)
    revoke(manager(installation), f"at_{secret.split('_')[1]}")
    live = caller_check._IS_CURRENT.replace("AND t.revoke_time IS NULL", "")
    assert live != caller_check._IS_CURRENT
    monkeypatch.setattr(caller_check, "_IS_CURRENT", live)

    assert accepts(second, secret)


def test_an_expired_token_is_refused(installation: Installation, second: GatekeeperServer) -> None:
    made = new_token(installation.admin, lives_s=2.0)

    assert eventually(lambda: not accepts(installation.server, made.secret))
    assert not accepts(second, made.secret)


def test_a_revoked_token_ends_its_import(installation: Installation, secret: str) -> None:
    key, before = created(installation.admin).key, installation.revision()
    message = pb.ImportTargetsRequest(flag_key=key, user_ids=["anna"], value=True)

    def messages() -> Iterator[pb.ImportTargetsRequest]:
        yield message
        assert eventually(lambda: installation.revision() > before)
        revoke(manager(installation), f"at_{secret.split('_')[1]}")
        yield message

    with using(installation.server, secret) as stub:
        refusal = refusal_of(lambda: stub.ImportTargets(messages(), timeout=TIMEOUT_S))

    assert refusal == UNAUTHENTICATED.after(applied_messages=1, applied_revision=before + 1)


# --- Other instances -------------------------------------------------------------------------------------------------


def test_an_instance_polls_for_changed_credentials_twice_a_second() -> None:
    assert POLL_INTERVAL_S <= 0.5


SILENCED: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "by announcement": lambda patch: patch.setattr(
        server_module, "CredentialRefresh", partial(CredentialRefresh, interval_s=3_600.0)
    ),
    "by poll": lambda patch: patch.setattr(CredentialRefresh, "request", lambda _self: None),
}


@contextmanager
def two_instances(start_server: StartServer, dsn: str) -> Iterator[tuple[AdminServiceStub, GatekeeperServer]]:
    """An admin on one instance, and another instance."""
    here, elsewhere = start_server(), start_server()
    with connect(elsewhere, token=token_for(dsn, Role.ADMIN)) as channel:
        yield AdminServiceStub(channel), here


def test_an_instance_knows_all_tokens_before_it_serves(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes to load them: else every roll would refuse those who call first."""
    secret, refresh = new_token(installation.admin).secret, ApiTokenCache.refresh

    def slowly(cache: ApiTokenCache) -> None:
        time.sleep(1)
        refresh(cache)

    monkeypatch.setattr(ApiTokenCache, "refresh", slowly)
    server = GatekeeperServer(settings_for_tests(), dsn=installation.dsn, keys=KEYS)
    server.start()
    try:
        assert accepts(server, secret)
    finally:
        server.stop()


@pytest.mark.parametrize("silence", SILENCED.values(), ids=SILENCED.keys())
def test_another_instance_learns_of_new_and_revoked_credentials(
    start_server: StartServer, dsn: str, monkeypatch: pytest.MonkeyPatch, silence: Callable[[Any], object]
) -> None:
    silence(monkeypatch)
    with two_instances(start_server, dsn) as (admin, here):
        made = new_token(admin)
        assert eventually(lambda: accepts(here, made.secret))

        revoke(admin, made.api_token.token_id)

        assert eventually(lambda: not here.api_tokens._tokens)


def test_twin_without_poll_and_announcement_it_learns_nothing(
    start_server: StartServer, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for silence in SILENCED.values():
        silence(monkeypatch)
    with two_instances(start_server, dsn) as (admin, here):
        made = new_token(admin)

        assert not eventually(lambda: accepts(here, made.secret), timeout_s=1.0)
