"""`gatekeeper login`, `logout`, `whoami` and `change-password`."""

import re
import shlex
from typing import Any

import click

from gatekeeper_grpc.cli.client.access import given_token, listed, session_of
from gatekeeper_grpc.cli.client.admins import SESSION
from gatekeeper_grpc.cli.client.failures import CREDENTIALS, LOG_IN, Failure
from gatekeeper_grpc.cli.client.output import Output, choice_of, time_of
from gatekeeper_grpc.cli.client.prompts import password, password_option, secret_of_stdin
from gatekeeper_grpc.cli.client.resources import reads
from gatekeeper_grpc.cli.client.server import TIMEOUT_S, Server
from gatekeeper_grpc.cli.client.sessions import Session, Sessions
from gatekeeper_grpc.cli.client.tokens import TOKEN

_API_TOKEN = "gka_"  # noqa: S105 - what they begin with
_ID = re.compile(r"gka_([0-9a-f]+)_")


@click.command()
@click.option("--username", default="admin", show_default=True, help="The admin user.")
@password_option
@click.option("--token-stdin", is_flag=True, help="Keep the API token on standard input instead.")
@reads
def login(server: Server, out: Output, *, username: str, password_stdin: bool, token_stdin: bool) -> None:
    """Log in, and keep the login for later commands.

    It is kept in gatekeeper/sessions.json below XDG_CONFIG_HOME or ~/.config, a file that only you can read.
    """
    if password_stdin and token_stdin:
        raise click.UsageError("--password-stdin or --token-stdin, not both")
    sessions = Sessions.of_user()
    if token_stdin:
        session = _session_of_token(server, secret_of_stdin("--token-stdin"))
    else:
        session = _session_of_password(
            server, username, password(from_stdin=password_stdin, prompt=f"Password of {username} on {server}")
        )
    earlier = sessions.find(server.kept_as)
    sessions.keep(server.kept_as, session)
    if earlier:  # Nobody else could end it.
        _end(server, earlier)
    said = {**_where(server), "username": session.username, "role": session.role}
    out.result(said, f"logged in to {server} as {session.username}, role {session.role}", name=session.username)


@click.command()
@reads
def logout(server: Server, out: Output) -> None:
    """End the kept login, on the server too. An API token stays valid: revoke it with `gatekeeper tokens revoke`."""
    sessions = Sessions.of_user()
    if session := sessions.find(server.kept_as):
        _end(server, session)
        sessions.forget(server.kept_as)
    said = f"logged out of {server}" if session else f"not logged in to {server}"
    out.result({**_where(server), "was_logged_in": session is not None}, said, name=server.target)


@click.command()
@reads
def whoami(server: Server, out: Output) -> None:
    """Say who you are to the server, and what you may do."""
    token, kept = given_token(), Sessions.of_user().find(server.kept_as)
    if token.startswith(_API_TOKEN) or (not token and kept and kept.is_api_token):
        found = _token_of(server, token or (kept.access_token if kept else ""))
        known = {"token_id": found.token_id, "token_name": found.name, "role": choice_of("role")(found)}
    else:
        found = _own_session(server)
        kept = Sessions.of_user().find(server.kept_as)  # It may have been refreshed.
        known = {"session_id": found.session_id, "role": kept.role if kept and not token else ""}
    document = {
        **_where(server),
        "username": found.username,
        **known,
        "expire_time": time_of("expire_time")(found),
    }
    said = {name: value for name, value in document.items() if value}
    lines = [f"{name.replace('_', ' ') + ':':<12} {value}" for name, value in said.items()]
    out.result(said, "\n".join(lines), name=found.username)


@click.command("change-password")
@click.option("--username", help="Whose: where it must be changed before a login.  [default: yours]")
@click.option("--reason", "change_reason", default="", help="Why, for the audit log.")
@click.option("--password-stdin", is_flag=True, help="Read the two passwords from two lines of standard input.")
@reads
def change_password(
    server: Server, out: Output, *, username: str | None, password_stdin: bool, change_reason: str
) -> None:
    """Change your password; asks for the present one and for the new one. All your sessions end."""
    kept = Sessions.of_user().find(server.kept_as)
    name = username or (kept.username if kept else "")
    if not name:
        raise click.UsageError("not logged in: say whose with --username")
    present, new = _two_passwords(from_stdin=password_stdin)
    # With the name instead of a token, which this would end.
    fields: dict[str, Any] = {
        "username": name,
        "current_password": present,
        "new_password": new,
        "change_reason": change_reason,
    }
    answer = _change_password(server, fields)
    if kept and kept.username == name:
        Sessions.of_user().forget(server.kept_as)
    out.result(answer, f"the password of {name} is changed: run `gatekeeper login`", name=name)


def _where(server: Server) -> dict[str, str]:
    return {"server": server.target, **({"context": server.context} if server.context else {})}


def _session_of_password(server: Server, username: str, secret: str) -> Session:
    from gatekeeper_client.v1.auth_service_pb2 import LoginRequest  # noqa: PLC0415
    from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub  # noqa: PLC0415

    request = LoginRequest(username=username, password=secret)
    try:
        with server.channel(log_in="check the username and the password") as channel:
            return session_of(username, AuthServiceStub(channel).Login(request, timeout=TIMEOUT_S))
    except Failure as failure:
        failure.hint = failure.hint.replace("--username NAME", f"--username {shlex.quote(username)}")
        raise


def _session_of_token(server: Server, secret: str) -> Session:
    if not _ID.match(secret):
        raise click.UsageError("--token-stdin: must be an API token, as `gatekeeper tokens create` prints it")
    found = _token_of(server, secret)
    return Session(
        username=found.username,
        access_token=secret,
        expire_time_s=found.expire_time.seconds,
        refresh_token="",
        role=choice_of("role")(found),
    )


def _end(server: Server, session: Session) -> None:
    from gatekeeper_client.v1.auth_service_pb2 import LogoutRequest  # noqa: PLC0415
    from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub  # noqa: PLC0415

    if not session.is_api_token:
        with server.channel() as channel:
            AuthServiceStub(channel).Logout(LogoutRequest(refresh_token=session.refresh_token), timeout=TIMEOUT_S)


def _token_of(server: Server, secret: str) -> Any:
    public = _ID.match(secret)
    token_id = f"at_{public[1]}" if public else ""
    for found in listed(server, "ListApiTokens", TOKEN.plural, token=secret):
        if found.token_id == token_id:
            return found
    raise Failure(f"{server} does not list the token {token_id}", CREDENTIALS, hint=LOG_IN)


def _own_session(server: Server) -> Any:
    for found in listed(server, "ListSessions", SESSION.plural):
        if found.current:
            return found
    raise Failure(f"the session on {server} has ended", CREDENTIALS, hint=LOG_IN)


def _two_passwords(*, from_stdin: bool) -> tuple[str, str]:
    if not from_stdin:
        return password(from_stdin=False, prompt="Present password"), password(
            from_stdin=False, prompt="New password", is_new=True
        )
    present, _, new = secret_of_stdin("--password-stdin").partition("\n")
    if not new:
        raise click.UsageError("--password-stdin: the present password and the new one must stand in two lines")
    return present.removesuffix("\r"), new


def _change_password(server: Server, fields: dict[str, Any]) -> Any:
    from gatekeeper_client.v1.admin_service_pb2 import ChangePasswordRequest  # noqa: PLC0415
    from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub  # noqa: PLC0415

    with server.channel(log_in="check the username and the present password") as channel:
        return AdminServiceStub(channel).ChangePassword(ChangePasswordRequest(**fields), timeout=TIMEOUT_S)
