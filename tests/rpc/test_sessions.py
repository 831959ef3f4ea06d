"""Sessions: everybody sees and ends their own, role admin those of all; ending one ends its tokens and no other's."""

from typing import Any
from uuid import uuid4

import pytest

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.admin_user_pb2 import ROLE_VIEWER, Session
from gatekeeper_client.v1.auth_service_pb2 import LogoutRequest, RefreshTokenRequest
from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import TIMEOUT_S, UNAUTHENTICATED, Installation, denial, invalid, not_found, refusal_of
from tests.support.operators import WRONG_CREDENTIALS, acting_as, enlisted, logged_in, manager
from tests.support.servers import connect

pytestmark = pytest.mark.promise("F3")


def sessions(stub: AdminServiceStub, **fields: Any) -> list[Session]:
    return list(stub.ListSessions(pb.ListSessionsRequest(**fields), timeout=TIMEOUT_S).sessions)


def end(stub: AdminServiceStub, session_id: str) -> None:
    stub.RevokeSession(pb.RevokeSessionRequest(session_id=session_id), timeout=TIMEOUT_S)


def events(installation: Installation, username: str) -> list[tuple[str, str]]:
    page = manager(installation).ListAuthEvents(pb.ListAuthEventsRequest(username=username), timeout=TIMEOUT_S)
    return [(event.event, event.actor) for event in page.auth_events]


def test_a_viewer_sees_its_own_sessions_and_which_one_it_uses(installation: Installation) -> None:
    viewer, other = (enlisted(installation, role=ROLE_VIEWER).username for _ in range(2))
    logged_in(installation, other)
    logged_in(installation, viewer)
    with acting_as(installation, viewer) as stub:
        own = sessions(stub)

        assert own == sessions(stub, username=viewer)
        denied = refusal_of(lambda: sessions(stub, username=other))
    assert denied == denial(Role.VIEWER, Role.ADMIN)
    assert [session.username for session in own] == [viewer] * 2
    assert sorted(session.current for session in own) == [False, True]
    assert {session.address for session in own} == {"127.0.0.1"}
    assert all(session.create_time == session.refresh_time for session in own)


def test_an_admin_sees_the_sessions_of_all_or_of_one_in_pages(installation: Installation) -> None:
    names = [enlisted(installation).username for _ in range(3)]
    for name in names:
        logged_in(installation, name)
    admin, token = manager(installation), ""
    found: list[Session] = []
    while True:
        page = admin.ListSessions(pb.ListSessionsRequest(page_size=2, page_token=token), timeout=TIMEOUT_S)
        found += page.sessions
        token = page.next_page_token
        if not token:
            break

    assert set(names) <= {session.username for session in found}
    assert [session.session_id for session in found] == sorted({session.session_id for session in found})
    assert [session.username for session in sessions(admin, username=names[0])] == names[:1]


def test_a_refresh_keeps_the_session_and_moves_its_times(installation: Installation) -> None:
    name = enlisted(installation).username
    login = logged_in(installation, name)
    (before,) = sessions(manager(installation), username=name)

    refresh = RefreshTokenRequest(refresh_token=login.refresh_token)
    AuthServiceStub(installation.channels[None]).RefreshToken(refresh, timeout=TIMEOUT_S)

    (after,) = sessions(manager(installation), username=name)
    assert (after.session_id, after.create_time) == (before.session_id, before.create_time)
    assert after.refresh_time.ToDatetime() > before.refresh_time.ToDatetime()
    assert after.expire_time.ToDatetime() > before.expire_time.ToDatetime()


@pytest.mark.parametrize("how", ["logout", "revoked"])
def test_ending_a_session_ends_its_tokens_and_those_of_no_other(installation: Installation, how: str) -> None:
    name = enlisted(installation).username
    login = logged_in(installation, name)
    auth = AuthServiceStub(installation.channels[None])
    with acting_as(installation, name) as other, connect(installation.server, token=login.access_token) as channel:
        ended = AdminServiceStub(channel)
        (session,) = [session for session in sessions(other) if not session.current]
        if how == "logout":
            auth.Logout(LogoutRequest(refresh_token=login.refresh_token), timeout=TIMEOUT_S)
        else:
            end(other, session.session_id)

        assert refusal_of(lambda: sessions(ended)) == UNAUTHENTICATED
        assert [session.current for session in sessions(other)] == [True]
    refresh = RefreshTokenRequest(refresh_token=login.refresh_token)
    assert refusal_of(lambda: auth.RefreshToken(refresh, timeout=TIMEOUT_S)) == WRONG_CREDENTIALS
    assert events(installation, name)[0] == ("logged_out" if how == "logout" else "session_revoked", "")


def test_an_admin_ends_the_session_of_another_and_the_event_names_both(installation: Installation) -> None:
    name = enlisted(installation).username
    logged_in(installation, name)
    (session,) = sessions(manager(installation), username=name)

    end(manager(installation), session.session_id)

    assert sessions(manager(installation), username=name) == []
    ((admin_id,),) = installation.query("SELECT admin_id FROM admin_user WHERE username = 'admin'")
    assert events(installation, name)[0] == ("session_revoked", f"admin:admin#{admin_id}")


def test_below_role_admin_another_session_is_as_unknown_as_none(installation: Installation) -> None:
    editor, other = (enlisted(installation).username for _ in range(2))
    logged_in(installation, other)
    (session,) = sessions(manager(installation), username=other)
    with acting_as(installation, editor) as stub:
        for session_id in (session.session_id, str(uuid4())):
            refusal = refusal_of(lambda: end(stub, session_id))  # noqa: B023 - called at once
            assert refusal == not_found("SESSION", session_id=session_id)

    assert sessions(manager(installation), username=other) == [session]


@pytest.mark.parametrize("session_id", ["", "mine", "5D7D3C1E-7D0A-4A55-9C6E-2F0C1C9E8A11"])
def test_an_id_that_is_none_is_named(installation: Installation, session_id: str) -> None:
    assert refusal_of(lambda: end(manager(installation), session_id)) == invalid("session_id")
