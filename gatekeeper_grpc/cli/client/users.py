"""`gatekeeper users` and `gatekeeper erase-user`: what is stored about users, and its erasure."""

import json
from collections.abc import Iterator
from typing import Any

import click

from gatekeeper_grpc.cli.client.access import change, stream
from gatekeeper_grpc.cli.client.output import JSON, YAML, Column, Kind, Output, document_of, text_of, time_of
from gatekeeper_grpc.cli.client.prompts import confirm, yes_option
from gatekeeper_grpc.cli.client.resources import Resource, changes, done, if_match
from gatekeeper_grpc.cli.client.server import Server, server_option
from gatekeeper_grpc.cli.client.values import attribute_option


def _attributes_of(user: Any) -> str:
    attributes = document_of(user.attributes)
    return " ".join(f"{name}={json.dumps(attributes[name], ensure_ascii=False)}" for name in sorted(attributes))


_USER = Resource(
    kind=Kind(
        plural="users",
        name_of=text_of("user_id"),
        columns=(
            Column("USER", text_of("user_id")),
            Column("ATTRIBUTES", _attributes_of),
            Column("UPDATED", time_of("update_time"), is_wide=True),
            Column("REVISION", text_of("revision"), is_wide=True),
            Column("ETAG", text_of("etag"), is_wide=True),
        ),
    ),
    noun="user",
    rpc="User",
    key="user_id",
)


@click.group()
def users() -> None:
    """Read and change known users: those with stored attributes. Each read is recorded."""


_USER.add_list(
    users,
    "List known users, by id.",
    click.option("--prefix", "user_id_prefix", help="Only users whose id begins with this."),
    attribute_option("Only users with this attribute"),
)
_USER.add_get(users, "Print the known user USER_ID.")
_USER.add_create(users, "Make USER_ID a known user.", attribute_option("An attribute"))


@users.command()
@click.argument("user_id")
@attribute_option("An attribute to set")
@click.option("--remove-attr", "removed", multiple=True, metavar="NAME", help="An attribute to remove. Repeatable.")
@if_match
@changes
def update(
    server: Server, out: Output, *, user_id: str, attributes: dict[str, Any], removed: tuple[str, ...], **how: Any
) -> None:
    """Set or remove attributes of the known user USER_ID; the others stay."""
    if both := attributes.keys() & set(removed):
        raise click.UsageError(f"{min(both)!r} cannot be set and removed at once")
    paths = [f"attributes.{name}" for name in (*attributes, *removed)]
    if not paths:
        raise click.UsageError("nothing to change: name an attribute")
    resource = {"user_id": user_id, "etag": how.pop("etag"), "attributes": attributes}
    answer = change(server, "UpdateUser", user=resource, update_mask={"paths": paths}, **how)
    out.item(_USER.kind, answer.user)


_USER.add_delete(users, "Delete the stored attributes of USER_ID. Its targets and memberships stay: see erase-user.")


@users.command()
@click.argument("user_id")
@click.option(
    "-o", "--output", "form", type=click.Choice([JSON, YAML]), default=JSON, show_default=True, help="Of each part."
)
@server_option
def export(server: Server, *, user_id: str, form: str) -> None:
    """Print all that is stored about USER_ID, in parts: JSON Lines, or YAML documents. Needs the role admin."""

    def print_parts(parts: Iterator[Any]) -> None:
        for part in parts:
            Output(form).event(part, "", name="")

    stream(server, "ExportUserData", print_parts, user_id=user_id)


@click.command("erase-user")
@click.argument("user_id")
@yes_option
@changes
def erase_user(server: Server, out: Output, *, user_id: str, yes: bool, **how: Any) -> None:
    """Erase USER_ID everywhere, the audit log included, for good. Needs the role admin."""
    if not how["validate_only"]:
        confirm(f"Erase user {user_id!r} everywhere on {server}, for good", yes=yes)
    answer = change(server, "EraseUser", user_id=user_id, **how)
    counts = (
        f"{answer.targets_removed} targets, {answer.memberships_removed} memberships,"
        f" {answer.documents_redacted} documents"
    )
    out.result(answer, f"{user_id} {done(how, 'is', 'erased')}: {counts}", name=user_id)
