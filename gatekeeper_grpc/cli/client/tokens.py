"""`gatekeeper tokens`: make, list and revoke API tokens."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from gatekeeper_grpc.cli.client.access import call_admin
from gatekeeper_grpc.cli.client.output import document_of, output_option, print_json, print_table
from gatekeeper_grpc.cli.client.server import Server, server_option

if TYPE_CHECKING:
    from gatekeeper_client.v1.api_token_pb2 import ApiToken

_PAGE_SIZE = 1_000
_DAY_S = 86_400
_ROLES = ("viewer", "editor", "admin")


@click.group()
def tokens() -> None:
    """Make, list and revoke API tokens, with which tools call AdminService."""


@tokens.command()
@click.argument("name")
@click.option("--role", type=click.Choice(_ROLES), default="viewer", show_default=True, help="What it may do at most.")
@click.option("--days", type=click.IntRange(1, 366), default=90, show_default=True, help="How long it lives.")
@click.option("--reason", default="", help="Why, for the audit log.")
@server_option
@output_option
def create(server: Server, *, name: str, role: str, days: int, reason: str, as_json: bool) -> None:
    """Make a token called NAME, and print its secret, which is shown once."""
    from google.protobuf.timestamp_pb2 import Timestamp  # noqa: PLC0415

    from gatekeeper_client.v1.admin_service_pb2 import CreateApiTokenRequest  # noqa: PLC0415
    from gatekeeper_client.v1.admin_user_pb2 import Role  # noqa: PLC0415
    from gatekeeper_client.v1.api_token_pb2 import ApiToken  # noqa: PLC0415

    expire_time = Timestamp(seconds=int(time.time()) + days * _DAY_S)
    token = ApiToken(name=name, role=Role.Value(f"ROLE_{role.upper()}"), expire_time=expire_time)
    request = CreateApiTokenRequest(api_token=token, change_reason=reason)
    answer = call_admin(server, lambda admin, how: admin.CreateApiToken(request, **how))
    if as_json:
        print_json(document_of(answer))
        return
    click.echo(answer.secret)


@tokens.command("list")
@click.option("--username", default="", help="Only those of this admin user.")
@server_option
@output_option
def list_tokens(server: Server, *, username: str, as_json: bool) -> None:
    """List your tokens, or with role admin those of all, without their secrets."""
    found = list(_listed(server, username))
    if as_json:
        print_json({"api_tokens": [document_of(token) for token in found]})
        return
    rows = [
        (
            token.token_id,
            token.name,
            _role_of(token),
            token.username,
            token.expire_time.ToJsonString(),
            _state_of(token),
        )
        for token in found
    ]
    print_table(["TOKEN", "NAME", "ROLE", "MAKER", "EXPIRES", "STATE"], rows)


@tokens.command()
@click.argument("token_id")
@click.option("--reason", default="", help="Why, for the audit log.")
@server_option
def revoke(server: Server, *, token_id: str, reason: str) -> None:
    """Revoke the token TOKEN_ID for good."""
    from gatekeeper_client.v1.admin_service_pb2 import RevokeApiTokenRequest  # noqa: PLC0415

    request = RevokeApiTokenRequest(token_id=token_id, change_reason=reason)
    answer = call_admin(server, lambda admin, how: admin.RevokeApiToken(request, **how))
    click.echo(f"{answer.api_token.token_id} is revoked")


def _listed(server: Server, username: str) -> "Iterator[ApiToken]":
    from gatekeeper_client.v1.admin_service_pb2 import ListApiTokensRequest  # noqa: PLC0415

    request = ListApiTokensRequest(page_size=_PAGE_SIZE, username=username)
    while True:
        page = call_admin(server, lambda admin, how: admin.ListApiTokens(request, **how))
        yield from page.api_tokens
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _role_of(token: "ApiToken") -> str:
    return _ROLES[token.role - 1] if 0 < token.role <= len(_ROLES) else str(token.role)


def _state_of(token: "ApiToken") -> str:
    if token.HasField("revoke_time"):
        return "revoked"
    return "expired" if token.expire_time.seconds <= time.time() else "live"
