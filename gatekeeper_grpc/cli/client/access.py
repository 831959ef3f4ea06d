"""The credentials of calls: GATEKEEPER_TOKEN, or the kept login, which is refreshed when it is due."""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, TypeVar

from gatekeeper_grpc.cli.client.failures import not_logged_in
from gatekeeper_grpc.cli.client.server import TIMEOUT_S, Server
from gatekeeper_grpc.cli.client.sessions import Session, Sessions

if TYPE_CHECKING:
    import grpc

    from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
    from gatekeeper_client.v1.auth_service_pb2 import LoginResponse, RefreshTokenResponse

Answer = TypeVar("Answer")

# An access token that expires so soon is refreshed first.
_MARGIN_S = 30.0
_CLIENT_KEY = "gkc_"


class CallOptions(TypedDict):
    """Keyword arguments of a call."""

    timeout: float
    metadata: tuple[tuple[str, str | bytes], ...]


def call_options(token: str = "") -> CallOptions:
    """Return what a call is made with; without a token it has no credentials."""
    return {"timeout": TIMEOUT_S, "metadata": (("authorization", f"Bearer {token}"),) if token else ()}


def client_key() -> str:
    """Return the client key in GATEKEEPER_TOKEN, which a server may require of evaluations; empty if there is none."""
    token = os.environ.get("GATEKEEPER_TOKEN", "")
    return token if token.startswith(_CLIENT_KEY) else ""


def call_admin(server: Server, call: "Callable[[AdminServiceStub, CallOptions], Answer]") -> Answer:
    """Call AdminService; `call` gets the stub, and the keyword arguments that it has to pass on.

    Raises:
        Failure: Nobody is logged in, or the call failed.
    """
    from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub  # noqa: PLC0415

    with server.channel() as channel:
        stub = AdminServiceStub(channel)
        return _with_token(server, channel, lambda token: call(stub, call_options(token)))


def session_of(username: str, issued: "LoginResponse | RefreshTokenResponse") -> Session:
    """Return the session that tokens make."""
    return Session(
        username=username,
        access_token=issued.access_token,
        expire_time_s=issued.access_token_expire_time.ToNanoseconds() / 1e9,
        refresh_token=issued.refresh_token,
    )


def _with_token(server: Server, channel: "grpc.Channel", call: Callable[[str], Answer]) -> Answer:
    import grpc  # noqa: PLC0415

    if token := os.environ.get("GATEKEEPER_TOKEN"):
        return call(token)
    sessions = Sessions.of_user()
    session = sessions.find(server.target)
    if session is None:
        raise not_logged_in(f"not logged in to {server.target}")
    if session.expire_time_s - time.time() < _MARGIN_S:
        return call(_refreshed(sessions, server, channel, session).access_token)
    try:
        return call(session.access_token)
    except grpc.RpcError as exc:  # Our clock may be wrong, or the server's keys are new.
        if exc.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return call(_refreshed(sessions, server, channel, session).access_token)


def _refreshed(sessions: Sessions, server: Server, channel: "grpc.Channel", stale: Session) -> Session:
    session = sessions.replace(server.target, stale, lambda current: _refresh(channel, current))
    if session is None:
        raise not_logged_in(f"the login to {server.target} has ended")
    return session


def _refresh(channel: "grpc.Channel", session: Session) -> Session | None:
    import grpc  # noqa: PLC0415

    from gatekeeper_client.v1.auth_service_pb2 import RefreshTokenRequest  # noqa: PLC0415
    from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub  # noqa: PLC0415

    request = RefreshTokenRequest(refresh_token=session.refresh_token)
    try:
        issued = AuthServiceStub(channel).RefreshToken(request, timeout=TIMEOUT_S)
    except grpc.RpcError as exc:
        if exc.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return None
    return session_of(session.username, issued)
