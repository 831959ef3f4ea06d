"""`gatekeeper login` and `gatekeeper logout`."""

import sys

import click

from gatekeeper_grpc.cli.client.access import session_of
from gatekeeper_grpc.cli.client.output import output_option, print_json
from gatekeeper_grpc.cli.client.server import TIMEOUT_S, Server, server_option
from gatekeeper_grpc.cli.client.sessions import Sessions


@click.command()
@click.option("--username", default="admin", show_default=True, help="The admin user.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.  [default: ask for it]")
@server_option
@output_option
def login(server: Server, *, username: str, password_stdin: bool, as_json: bool) -> None:
    """Log in, and keep the login for later commands.

    It is kept in gatekeeper/sessions.json below XDG_CONFIG_HOME or ~/.config, which only you can read.
    """
    from gatekeeper_client.v1.admin_user_pb2 import Role  # noqa: PLC0415
    from gatekeeper_client.v1.auth_service_pb2 import LoginRequest, LogoutRequest  # noqa: PLC0415
    from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub  # noqa: PLC0415

    password = _from_stdin() if password_stdin else _asked()
    sessions = Sessions.of_user()
    with server.channel() as channel:
        auth = AuthServiceStub(channel)
        issued = auth.Login(LoginRequest(username=username, password=password), timeout=TIMEOUT_S)
        earlier = sessions.find(server.target)
        sessions.keep(server.target, session_of(username, issued))
        if earlier:  # Nobody else could end it.
            auth.Logout(LogoutRequest(refresh_token=earlier.refresh_token), timeout=TIMEOUT_S)
    role = Role.Name(issued.role).removeprefix("ROLE_").lower()
    if as_json:
        print_json({"server": server.target, "username": username, "role": role})
    else:
        click.echo(f"logged in to {server.target} as {username}, role {role}")


@click.command()
@server_option
@output_option
def logout(server: Server, *, as_json: bool) -> None:
    """End the kept login, on the server too."""
    from gatekeeper_client.v1.auth_service_pb2 import LogoutRequest  # noqa: PLC0415
    from gatekeeper_client.v1.auth_service_pb2_grpc import AuthServiceStub  # noqa: PLC0415

    sessions = Sessions.of_user()
    if session := sessions.find(server.target):
        with server.channel() as channel:
            request = LogoutRequest(refresh_token=session.refresh_token)
            AuthServiceStub(channel).Logout(request, timeout=TIMEOUT_S)
        sessions.forget(server.target)
    if as_json:
        print_json({"server": server.target, "was_logged_in": session is not None})
    else:
        click.echo(f"logged out of {server.target}" if session else f"not logged in to {server.target}")


def _from_stdin() -> str:
    password = sys.stdin.read().removesuffix("\n").removesuffix("\r") if sys.stdin else ""
    if not password:
        raise click.UsageError("--password-stdin: no password came on standard input")
    return password


def _asked() -> str:
    if not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError("standard input is no terminal to ask for the password: use --password-stdin < FILE")
    return str(click.prompt("Password", hide_input=True, err=True))
