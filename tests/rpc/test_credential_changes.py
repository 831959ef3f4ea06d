"""Credentials in memory are loaded when one of them may have changed, and not with every change of a flag."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import AdminUser
from gatekeeper_client.v1.api_token_pb2 import ApiToken
from gatekeeper_grpc.auth.api_tokens import ApiTokenCache
from gatekeeper_grpc.domain.caller import Role
from gatekeeper_grpc.store import credential_changes
from gatekeeper_grpc.store.credential_changes import credentials_changed
from tests.support.clients import TIMEOUT_S, Installation, created, installed
from tests.support.mutations import MUTATIONS
from tests.support.operators import acting_as, enlisted, manager, new_token
from tests.support.successes import CHANGES, SUCCESSES
from tests.support.waiting import eventually

pytestmark = pytest.mark.promise("D5")


@pytest.fixture(scope="module")
def installation(postgres: str) -> Iterator[Installation]:
    with installed(postgres) as installation:
        yield installation


def live(installation: Installation) -> set[str]:
    """Everything by which a credential is accepted."""
    stores = installation.server.stores
    return {repr(each) for each in (*stores.client_keys.load_live(), *stores.api_tokens.load_live())}


def changed_by(installation: Installation, act: Any) -> tuple[bool, bool]:
    """Return whether an act changes what is accepted, and whether the log tells that it may."""
    before, revision = live(installation), installation.revision()
    act(installation)
    _, is_told = credentials_changed(installation.server.database, revision)
    return live(installation) != before, is_told


@pytest.mark.parametrize("rpc", CHANGES)
def test_the_log_tells_of_each_rpc_that_changes_what_is_accepted(installation: Installation, rpc: str) -> None:
    has_changed, is_told = changed_by(installation, SUCCESSES[rpc])

    assert is_told or not has_changed


def update(admin: AdminServiceStub, username: str, **fields: Any) -> None:
    user = AdminUser(username=username, **fields)
    admin.UpdateAdminUser(
        pb.UpdateAdminUserRequest(admin_user=user, update_mask=FieldMask(paths=[*fields])), timeout=TIMEOUT_S
    )


OF_A_TOKEN: dict[str, Callable[[AdminServiceStub, ApiToken], object]] = {
    "revoked": lambda admin, token: admin.RevokeApiToken(pb.RevokeApiTokenRequest(token_id=token.token_id)),
    "maker demoted": lambda admin, token: update(admin, token.username, role=Role.VIEWER.value),
    "maker disabled": lambda admin, token: update(admin, token.username, enabled=False),
    "maker deleted": lambda admin, token: admin.DeleteAdminUser(pb.DeleteAdminUserRequest(username=token.username)),
}


@pytest.mark.parametrize("is_sabotaged", [False, True], ids=["as it is", "twin"])
@pytest.mark.parametrize("act", OF_A_TOKEN.values(), ids=OF_A_TOKEN.keys())
def test_the_log_tells_of_what_happens_to_a_token(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, act: Any, is_sabotaged: bool
) -> None:
    if is_sabotaged:
        monkeypatch.setattr(credential_changes, "_OF_CREDENTIALS", frozenset())
    with acting_as(installation, enlisted(installation, role=Role.EDITOR.value).username) as maker:
        token = new_token(maker).api_token

    assert changed_by(installation, lambda _: act(manager(installation), token)) == (True, not is_sabotaged)


@pytest.mark.parametrize("rpc", ["UpdateFlag", "AddTargets", "UpdateSegment", "UpdateUser"])
def test_a_change_of_something_else_loads_no_credentials(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, rpc: str
) -> None:
    loads = []
    key = MUTATIONS[rpc].make(installation)
    assert eventually(lambda: installation.server._credential_refresh._loaded_revision == installation.revision())
    monkeypatch.setattr(ApiTokenCache, "refresh", lambda _cache: loads.append("tokens"))

    MUTATIONS[rpc].ask(installation, key)

    assert eventually(lambda: installation.server._credential_refresh._loaded_revision == installation.revision())
    assert loads == []


def test_what_is_not_in_the_log_any_more_counts_as_changed(installation: Installation) -> None:
    revision = installation.revision()
    created(installation.admin)
    assert not credentials_changed(installation.server.database, revision)[1]

    installation.execute("DELETE FROM change_log")

    assert credentials_changed(installation.server.database, revision)[1]
