"""Calls of AdminService and their credentials: a token of the environment, or the kept login, refreshed when due."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar
from uuid import uuid4

import click

from gatekeeper_grpc.cli.client.failures import LOG_IN, not_logged_in
from gatekeeper_grpc.cli.client.server import TIMEOUT_S, Server
from gatekeeper_grpc.cli.client.sessions import Session, Sessions

if TYPE_CHECKING:
    import grpc

    from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
    from gatekeeper_client.v1.auth_service_pb2 import LoginResponse, RefreshTokenResponse

Answer = TypeVar("Answer")

STREAM_TIMEOUT_S = 3600.0
"""How long a stream may take: an instance ends it then."""
_PAGE_SIZE = 1_000
# An access token that expires so soon is refreshed first.
_MARGIN_S = 30.0
# A change that found no instance is repeated after each of these times, with the same request_id.
_PAUSES_S = (0.2, 1.0)
_TOKEN, _TOKEN_FILE = "GATEKEEPER_TOKEN", "GATEKEEPER_TOKEN_FILE"


class CallOptions(TypedDict):
    """Keyword arguments of a call."""

    timeout: float
    metadata: tuple[tuple[str, str | bytes], ...]


def call_options(token: str = "", *, timeout_s: float = TIMEOUT_S) -> CallOptions:
    """Return what a call is made with; without a token it has no credentials."""
    return {"timeout": timeout_s, "metadata": (("authorization", f"Bearer {token}"),) if token else ()}


def given_token() -> str:
    """Return the token of GATEKEEPER_TOKEN or of the file GATEKEEPER_TOKEN_FILE; empty if neither is set.

    Raises:
        click.UsageError: Both are set, or the file cannot be read or is empty.
    """
    token, file = os.environ.get(_TOKEN, ""), os.environ.get(_TOKEN_FILE, "")
    if not file:
        return token
    if token:
        raise click.UsageError(f"{_TOKEN} and {_TOKEN_FILE} are both set: unset one")
    try:
        content = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise click.UsageError(f"{_TOKEN_FILE}: {file!r} cannot be read") from None
    if not content:
        raise click.UsageError(f"{_TOKEN_FILE}: {file!r} is empty")
    return content


def read(server: Server, rpc: str, *, token: str = "", **fields: Any) -> Any:
    """Call a method of AdminService that changes nothing.

    Args:
        server: The server.
        rpc: The method's name.
        token: The credentials; empty: as for all commands.
        fields: Of the request, by their names in the proto; a message is a dict, an enum the name of its value.

    Raises:
        Failure: Nobody is logged in, or the call failed.
    """
    request = request_of(rpc, fields)
    return call_admin(server, lambda admin, how: getattr(admin, rpc)(request, **how), token=token)


def listed(server: Server, rpc: str, plural: str, *, limit: int | None = None, **fields: Any) -> Iterator[Any]:
    """Yield what all pages of a list have, or the first `limit` of it."""
    left, page_token = limit or float("inf"), ""
    while left > 0:
        size = int(min(left, _PAGE_SIZE))
        page = read(server, rpc, page_size=size, page_token=page_token, **fields)
        found = getattr(page, plural)
        yield from found
        left, page_token = left - len(found), page.next_page_token
        if not page_token:
            return


def change(server: Server, rpc: str, **fields: Any) -> Any:
    """Call a method of AdminService that changes something, as `read` does; it is made once, however often it is sent.

    Raises:
        Failure: Nobody is logged in, or the call failed.
    """
    request = request_of(rpc, {**fields, "request_id": str(uuid4())})
    server.announce()
    return call_admin(server, lambda admin, how: _repeated(lambda: getattr(admin, rpc)(request, **how)))


def change_many(server: Server, rpc: str, batches: Sequence[dict[str, Any]]) -> Any:
    """Call a method of AdminService that takes a stream of changes, as `change` does; each batch is a request."""
    requests = [request_of(rpc, {**batch, "request_id": str(uuid4())}) for batch in batches]
    server.announce()

    def call(admin: "AdminServiceStub", how: CallOptions) -> Any:
        how["timeout"] = STREAM_TIMEOUT_S
        return _repeated(lambda: getattr(admin, rpc)(iter(requests), **how))

    return call_admin(server, call)


def stream(server: Server, rpc: str, consume: Callable[[Iterator[Any]], Answer], **fields: Any) -> Answer:
    """Call a method of AdminService that answers with a stream, and return what `consume` makes of it."""
    request = request_of(rpc, fields)

    def call(admin: "AdminServiceStub", how: CallOptions) -> Answer:
        how["timeout"] = STREAM_TIMEOUT_S
        return consume(getattr(admin, rpc)(request, **how))

    return call_admin(server, call)


def call_admin(server: Server, call: "Callable[[AdminServiceStub, CallOptions], Answer]", *, token: str = "") -> Answer:
    """Call AdminService; `call` gets the stub, and the keyword arguments that it has to pass on.

    Raises:
        Failure: Nobody is logged in, or the call failed.
    """
    from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub  # noqa: PLC0415

    token = token or given_token()
    log_in = f"replace {_TOKEN}, or unset it and {LOG_IN}" if token else LOG_IN
    with server.channel(log_in=log_in) as channel:
        stub = AdminServiceStub(channel)
        if token:
            return call(stub, call_options(token))
        return _with_login(server, channel, lambda token: call(stub, call_options(token)))


def request_of(rpc: str, fields: dict[str, Any]) -> Any:
    """Make the request of a method of AdminService, of fields as `read` takes them."""
    from gatekeeper_client.v1 import admin_service_pb2  # noqa: PLC0415

    return getattr(admin_service_pb2, f"{rpc}Request")(**fields)


def session_of(username: str, issued: "LoginResponse | RefreshTokenResponse") -> Session:
    """Return the session that tokens make."""
    from gatekeeper_client.v1.admin_user_pb2 import Role  # noqa: PLC0415

    return Session(
        username=username,
        access_token=issued.access_token,
        expire_time_s=issued.access_token_expire_time.ToNanoseconds() / 1e9,
        refresh_token=issued.refresh_token,
        role=Role.Name(issued.role).removeprefix("ROLE_").lower(),
    )


def _repeated(call: Callable[[], Answer]) -> Answer:
    import grpc  # noqa: PLC0415

    for pause_s in _PAUSES_S:
        try:
            return call()
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            time.sleep(pause_s)
    return call()


def _with_login(server: Server, channel: "grpc.Channel", call: Callable[[str], Answer]) -> Answer:
    import grpc  # noqa: PLC0415

    sessions = Sessions.of_user()
    session = sessions.find(server.kept_as)
    if session is None:
        raise not_logged_in(f"not logged in to {server}")
    if session.is_api_token:
        return call(session.access_token)
    if session.expire_time_s - time.time() < _MARGIN_S:
        return call(_refreshed(sessions, server, channel, session).access_token)
    try:
        return call(session.access_token)
    except grpc.RpcError as exc:  # Our clock may be wrong, or the server's keys are new.
        if exc.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return call(_refreshed(sessions, server, channel, session).access_token)


def _refreshed(sessions: Sessions, server: Server, channel: "grpc.Channel", stale: Session) -> Session:
    session = sessions.replace(server.kept_as, stale, lambda current: _refresh(channel, current))
    if session is None:
        raise not_logged_in(f"the login to {server} has ended")
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
