"""`gatekeeper admins` and `gatekeeper sessions`: the people who administer, and their logins."""

from typing import Any

import click

from gatekeeper_grpc.cli.client.access import change, read
from gatekeeper_grpc.cli.client.output import Column, Kind, Output, choice_of, text_of, time_of, yes_of
from gatekeeper_grpc.cli.client.prompts import password, password_option
from gatekeeper_grpc.cli.client.resources import Resource, changes, given, if_match, reads, role_option
from gatekeeper_grpc.cli.client.server import Server

_must_change = click.option(
    "--must-change-password/--may-keep-password",
    "must_change_password",
    default=None,
    help="Whether they have to change it before they can log in.",
)
_ADMIN = Resource(
    kind=Kind(
        plural="admin_users",
        name_of=text_of("username"),
        columns=(
            Column("ADMIN", text_of("username")),
            Column("ROLE", choice_of("role")),
            Column("ENABLED", yes_of("enabled")),
            Column("UPDATED", time_of("update_time")),
            Column("CREATED", time_of("create_time"), is_wide=True),
            Column("MUST_CHANGE", yes_of("must_change_password"), is_wide=True),
            Column("ID", text_of("admin_id"), is_wide=True),
            Column("REVISION", text_of("revision"), is_wide=True),
            Column("ETAG", text_of("etag"), is_wide=True),
        ),
    ),
    noun="admin_user",
    rpc="AdminUser",
    key="username",
    fields=(
        role_option(),
        click.option("--enabled/--disabled", default=None, help="Whether they may log in."),
        _must_change,
    ),
)
SESSION = Kind(
    plural="sessions",
    name_of=text_of("session_id"),
    columns=(
        Column("SESSION", text_of("session_id")),
        Column("ADMIN", text_of("username")),
        Column("SINCE", time_of("create_time")),
        Column("CURRENT", yes_of("current")),
        Column("REFRESHED", time_of("refresh_time"), is_wide=True),
        Column("EXPIRES", time_of("expire_time"), is_wide=True),
        Column("ADDRESS", text_of("address"), is_wide=True),
    ),
)
_SESSION = Resource(kind=SESSION, noun="session", rpc="Session", key="session_id")


@click.group()
def admins() -> None:
    """Create, list, change and delete admin users. Needs the role admin."""


_ADMIN.add_list(admins, "List all admin users, by name.")


@admins.command()
@click.argument("username")
@role_option(default="viewer", show_default=True)
@_must_change
@password_option
@changes
def create(server: Server, out: Output, *, password_stdin: bool, username: str, **fields: Any) -> None:
    """Create the admin user USERNAME, with a password that is asked for."""
    how = {name: fields.pop(name) for name in ("change_reason", "validate_only")}
    secret = password(from_stdin=password_stdin, is_new=True)
    resource = {"username": username, **given(fields)}
    answer = change(server, "CreateAdminUser", admin_user=resource, password=secret, **how)
    out.item(_ADMIN.kind, answer.admin_user)


_ADMIN.add_update(admins, "Change the role of USERNAME, or whether they may log in. Their sessions end.")


@admins.command("set-password")
@click.argument("username")
@_must_change
@password_option
@if_match
@changes
def set_password(
    server: Server, out: Output, *, password_stdin: bool, must_change_password: bool | None, **how: Any
) -> None:
    """Give USERNAME another password, which is asked for. Their sessions end."""
    fields = given({"must_change_password": must_change_password})
    secret = password(from_stdin=password_stdin, is_new=True)
    _ADMIN.update(server, out, fields, clear=["password"], password=secret, **how)


_ADMIN.add_delete(admins, "Delete the admin user USERNAME for good. Their audit entries stay.")


@click.group()
def sessions() -> None:
    """List and end logins."""


_SESSION.add_list(
    sessions,
    "List your sessions, or with role admin those of all.",
    click.option("--username", help="Only those of this admin user."),
)


@sessions.command()
@click.argument("session_id")
@reads
def revoke(server: Server, out: Output, *, session_id: str) -> None:
    """End the session SESSION_ID: its tokens are refused at once."""
    answer = read(server, "RevokeSession", session_id=session_id)
    out.result(answer, f"{session_id} has ended", name=session_id)
