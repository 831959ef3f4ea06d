"""Who may call what of AdminService; an admin user who loses a right is stopped at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, LiteralString, NamedTuple, TypeAlias

import grpc
import psycopg
import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.interceptors.chain import Stages
from gatekeeper_grpc.interceptors.policy import POLICIES, Access, PolicyTableError
from gatekeeper_grpc.lifecycle.server import GatekeeperServer
from gatekeeper_grpc.store import mutations
from gatekeeper_grpc.store.mutations import CHANNEL
from tests.support.clients import (
    LEAST_ROLE,
    NOT_FOR_API_TOKENS,
    NOT_FOR_TOKENS,
    SERVICE,
    TIMEOUT_S,
    UNAUTHENTICATED,
    Installation,
    Refusal,
    denial,
    installed,
    outcome_of,
    refusal_of,
    send,
)
from tests.support.mutations import EACH_MUTATION, MUTATIONS, Mutation
from tests.support.operators import new_token
from tests.support.servers import KEYS, connect, settings_for_tests

pytestmark = pytest.mark.promise("D5")

RPCS = [rpc.name for rpc in SERVICE.methods]


class TokenOf(NamedTuple):
    """An API token with a role, of a maker who may do everything."""

    role: Role


Who: TypeAlias = Role | TokenOf | None
CALLERS: tuple[Who, ...] = (None, *Role, *map(TokenOf, Role))


@pytest.fixture
def fresh(postgres: str) -> Iterator[Installation]:
    """An installation whose admin users a test may change."""
    with installed(postgres) as installation:
        yield installation


def name_of(caller: Who) -> str:
    if isinstance(caller, TokenOf):
        return f"token of a {caller.role.name.lower()}"
    return caller.name.lower() if caller else "nobody"


@contextmanager
def admin_service(installation: Installation, caller: Who) -> Iterator[AdminServiceStub]:
    """The AdminService for a kind of caller."""
    if not isinstance(caller, TokenOf):
        yield installation.admin_as(caller)
        return
    maker = installation.admin_as(Role.ADMIN)
    made = new_token(maker, role=caller.role.value)
    with connect(installation.server, token=made.secret) as channel:
        yield AdminServiceStub(channel)
    # Nobody may have many.
    maker.RevokeApiToken(pb.RevokeApiTokenRequest(token_id=made.api_token.token_id), timeout=TIMEOUT_S)


def path_of(rpc: str) -> str:
    return f"/{SERVICE.full_name}/{rpc}"


# --- The matrix ------------------------------------------------------------------------------------------------------


def verdict(admin: AdminServiceStub, rpc: str) -> Refusal | None:
    """Call an RPC with an empty request; return why the caller is kept out, None when it is let in."""
    request = getattr(pb, f"{rpc}Request")()
    outcome = outcome_of(lambda: send(admin, rpc, request))
    kept_out = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    return outcome if isinstance(outcome, Refusal) and outcome.code in kept_out else None


def expected_verdict(caller: Who, rpc: str) -> Refusal | None:
    if caller is None:
        return UNAUTHENTICATED
    if isinstance(caller, TokenOf):
        return NOT_FOR_TOKENS if rpc in NOT_FOR_API_TOKENS else expected_verdict(caller.role, rpc)
    return denial(caller, LEAST_ROLE[rpc]) if caller < LEAST_ROLE[rpc] else None


@pytest.mark.parametrize("caller", CALLERS, ids=name_of)
@pytest.mark.parametrize("rpc", RPCS)
def test_an_rpc_admits_its_roles_and_nobody_else(installation: Installation, caller: Who, rpc: str) -> None:
    with admin_service(installation, caller) as admin:
        assert verdict(admin, rpc) == expected_verdict(caller, rpc)


# A row of the policy table, what in it is changed to what, and who is judged otherwise then.
CHANGED_ROWS: dict[str, tuple[str, dict[str, Any], set[Who]]] = {
    "lowered": ("DeleteFlag", {"access": Role.VIEWER}, {Role.VIEWER, TokenOf(Role.VIEWER)}),
    "raised": ("ListFlags", {"access": Role.EDITOR}, {Role.VIEWER, TokenOf(Role.VIEWER)}),
    "opened": ("GetFlag", {"access": Access.PUBLIC}, {None}),
    "given to tokens": ("CreateClientKey", {"for_api_tokens": True}, {*map(TokenOf, Role)}),
    "taken from tokens": ("UpdateFlag", {"for_api_tokens": False}, {*map(TokenOf, Role)}),
}


@pytest.mark.parametrize(("rpc", "change", "expected"), CHANGED_ROWS.values(), ids=CHANGED_ROWS.keys())
def test_twin_a_changed_policy_row_fails_its_cells_of_the_matrix(
    postgres: str,
    monkeypatch: pytest.MonkeyPatch,
    rpc: str,
    change: dict[str, Any],
    expected: set[Who],
) -> None:
    """The twin of the matrix."""
    changed = {**POLICIES, path_of(rpc): replace(POLICIES[path_of(rpc)], **change)}
    monkeypatch.setattr("gatekeeper_grpc.lifecycle.server.Stages", partial(Stages, policies=changed))

    with installed(postgres) as installation:
        red = set[tuple[Who, str]]()
        for caller in CALLERS:
            with admin_service(installation, caller) as admin:
                red |= {(caller, rpc) for rpc in RPCS if verdict(admin, rpc) != expected_verdict(caller, rpc)}

    assert red == {(caller, rpc) for caller in expected}


@pytest.mark.parametrize("rpc", RPCS)
def test_the_server_refuses_to_start_without_a_policy_row_for_each_rpc(
    monkeypatch: pytest.MonkeyPatch, rpc: str
) -> None:
    rest = {path: policy for path, policy in POLICIES.items() if path != path_of(rpc)}
    monkeypatch.setattr("gatekeeper_grpc.lifecycle.server.POLICIES", rest)

    with pytest.raises(PolicyTableError, match=f"{path_of(rpc)} has no policy row"):
        GatekeeperServer(settings_for_tests(), dsn="", keys=KEYS)


@EACH_MUTATION
def test_a_refused_caller_changes_nothing(installation: Installation, mutation: Mutation) -> None:
    key = mutation.make(installation)
    kept_out = [role for role in Role if role < mutation.least_role]
    before = installation.contents()

    refusals = [
        refusal_of(lambda: mutation.ask(installation, key, caller=installation.admin_as(caller)))  # noqa: B023 - called at once
        for caller in (None, *kept_out)
    ]

    assert refusals == [UNAUTHENTICATED, *(denial(role, mutation.least_role) for role in kept_out)]
    assert installation.contents() == before


# --- Stopped at once -------------------------------------------------------------------------------------------------

STOPS: dict[str, LiteralString] = {
    "disabled": "UPDATE admin_user SET enabled = false",
    "given another role": "UPDATE admin_user SET role = CASE role WHEN 'viewer' THEN 'editor' ELSE 'viewer' END",
    "given another epoch": "UPDATE admin_user SET token_epoch = token_epoch + 1",
    "deleted": "DELETE FROM admin_user",
}


def acts(installation: Installation) -> dict[str, Callable[[], object]]:
    """Prepare every mutation, each on something of its own and by a caller who is logged in already."""
    prepared: dict[str, Callable[[], object]] = {}
    for rpc, mutation in MUTATIONS.items():
        key = mutation.make(installation)
        prepared[rpc] = partial(mutation.ask, installation, key, caller=mutation.caller(installation, key))
    return prepared


def contents_but_events(installation: Installation) -> dict[str, list[str]]:
    """Everything held but the events of logging in: that a password was refused is one, and is to be remembered."""
    return installation.contents(but="auth_events")


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())
def test_an_admin_user_is_stopped_at_once_though_the_token_is_valid(fresh: Installation, stop: LiteralString) -> None:
    prepared = acts(fresh)
    fresh.execute(stop)
    before = contents_but_events(fresh)

    outcomes = {rpc: outcome_of(act) for rpc, act in prepared.items()}

    assert outcomes == {rpc: mutation.refused(UNAUTHENTICATED) for rpc, mutation in MUTATIONS.items()}
    assert contents_but_events(fresh) == before


def test_without_the_check_of_the_caller_a_disabled_admin_user_goes_on(
    fresh: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test before."""
    claims_of_the_system = mutations._claims(None)
    monkeypatch.setattr(mutations, "_claims", lambda _: claims_of_the_system)
    mutation = MUTATIONS["DeleteFlag"]
    key = mutation.make(fresh)
    fresh.execute(STOPS["disabled"])

    assert mutation.ask(fresh, key).revision == fresh.revision()


def test_a_stopped_admin_user_does_not_even_get_the_answer_to_a_retry(fresh: Installation) -> None:
    mutation = MUTATIONS["UpdateFlag"]
    ask = partial(mutation.ask, fresh, mutation.make(fresh), request_id="6f1c1e9c-2f0a-4b7a-9d7e-0c6a1f6f0b52")
    ask()
    fresh.execute(STOPS["disabled"])

    assert refusal_of(ask) == UNAUTHENTICATED


def test_an_admin_user_is_stopped_in_the_middle_of_an_import(fresh: Installation) -> None:
    mutation = MUTATIONS["ImportTargets"]
    key = mutation.make(fresh)
    before = fresh.revision()

    def messages() -> Iterator[pb.ImportTargetsRequest]:
        with psycopg.connect(fresh.dsn, autocommit=True) as conn:
            conn.execute(f"LISTEN {CHANNEL}")
            yield mutation.request(key)
            list(conn.notifies(timeout=TIMEOUT_S, stop_after=1))
            conn.execute(STOPS["disabled"])
            yield mutation.request(key)

    refusal = refusal_of(lambda: fresh.admin.ImportTargets(messages(), timeout=TIMEOUT_S))

    assert refusal == UNAUTHENTICATED.after(applied_messages=1, applied_revision=before + 1)
    assert fresh.revision() == before + 1
