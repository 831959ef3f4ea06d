"""`gatekeeper flags`: read and change flags."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gatekeeper_grpc.cli.client.access import call_admin
from gatekeeper_grpc.cli.client.output import document_of, one_line, output_option, print_json, print_table
from gatekeeper_grpc.cli.client.server import Server, server_option

if TYPE_CHECKING:
    from gatekeeper_client.v1.flag_pb2 import Flag

Function = TypeVar("Function", bound=Callable[..., Any])

_PAGE_SIZE = 1_000
_PERCENT = click.IntRange(0, 100)


@click.group()
def flags() -> None:
    """Read and change flags. Needs a login, or an access token in GATEKEEPER_TOKEN."""


def _changes_a_flag(function: Function) -> Function:
    """Give a command the options of every change."""
    options = [
        server_option,
        output_option,
        click.option("--reason", default="", help="Why, for the audit log."),
        click.option("--dry-run", is_flag=True, help="Check the change, and make none."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@flags.command("list")
@click.option("--prefix", default="", help="Only flags whose key begins with this.")
@click.option("--tag", "tags", multiple=True, help="Only flags with this tag. Repeatable: with all of them.")
@server_option
@output_option
def list_flags(server: Server, *, prefix: str, tags: tuple[str, ...], as_json: bool) -> None:
    """List all flags, by key."""
    found = list(_listed(server, key_prefix=prefix, tags=tags))
    if as_json:
        print_json({"flags": [document_of(flag) for flag in found]})
        return
    rows = [
        (flag.key, _yes(flag.enabled), f"{flag.rollout_percentage}%", _true(flag.default_value), ",".join(flag.tags))
        for flag in found
    ]
    print_table(["FLAG", "ENABLED", "ROLLOUT", "DEFAULT", "TAGS"], rows)


@flags.command()
@click.argument("key")
@server_option
@output_option
def get(server: Server, *, key: str, as_json: bool) -> None:
    """Print the flag KEY."""
    from gatekeeper_client.v1.admin_service_pb2 import GetFlagRequest  # noqa: PLC0415

    answer = call_admin(server, lambda admin, how: admin.GetFlag(GetFlagRequest(key=key), **how))
    _print_flag(answer.flag, as_json=as_json)


@flags.command()
@click.argument("key")
@click.option("--description", default="", help="What the flag is for.")
@click.option("--owner", default="", help="The team or person responsible for it.")
@click.option("--tag", "tags", multiple=True, help="A label. Repeatable.")
@click.option("--rollout", type=_PERCENT, default=0, help="Percentage of users who get true.")
@click.option("--default", "default_value", type=bool, default=False, help="The value when no rule applies.")
@click.option("--enabled/--disabled", default=False, show_default=True, help="Whether the rules apply.")
@_changes_a_flag
def create(server: Server, *, key: str, rollout: int, reason: str, dry_run: bool, as_json: bool, **fields: Any) -> None:
    """Create the flag KEY."""
    from gatekeeper_client.v1.admin_service_pb2 import CreateFlagRequest  # noqa: PLC0415
    from gatekeeper_client.v1.flag_pb2 import Flag  # noqa: PLC0415

    flag = Flag(key=key, rollout_percentage=rollout, **fields)
    request = CreateFlagRequest(flag=flag, change_reason=reason, validate_only=dry_run)
    answer = call_admin(server, lambda admin, how: admin.CreateFlag(request, **how))
    _print_flag(answer.flag, as_json=as_json)


@flags.command("set-rollout")
@click.argument("key")
@click.argument("percentage", type=_PERCENT)
@_changes_a_flag
def set_rollout(server: Server, *, key: str, percentage: int, **how: Any) -> None:
    """Let PERCENTAGE (0 to 100) of the users get true for the flag KEY."""
    _update(server, key, {"rollout_percentage": percentage}, **how)


@flags.command()
@click.argument("key")
@_changes_a_flag
def enable(server: Server, *, key: str, **how: Any) -> None:
    """Let the rules of the flag KEY apply."""
    _update(server, key, {"enabled": True}, **how)


@flags.command()
@click.argument("key")
@_changes_a_flag
def disable(server: Server, *, key: str, **how: Any) -> None:
    """Give every user the default value of the flag KEY: the kill switch."""
    _update(server, key, {"enabled": False}, **how)


def _listed(server: Server, **filters: Any) -> "Iterator[Flag]":
    from gatekeeper_client.v1.admin_service_pb2 import ListFlagsRequest  # noqa: PLC0415

    request = ListFlagsRequest(page_size=_PAGE_SIZE, **filters)
    while True:
        page = call_admin(server, lambda admin, how: admin.ListFlags(request, **how))
        yield from page.flags
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _update(server: Server, key: str, fields: dict[str, Any], *, reason: str, dry_run: bool, as_json: bool) -> None:
    from google.protobuf.field_mask_pb2 import FieldMask  # noqa: PLC0415

    from gatekeeper_client.v1.admin_service_pb2 import UpdateFlagRequest  # noqa: PLC0415
    from gatekeeper_client.v1.flag_pb2 import Flag  # noqa: PLC0415

    request = UpdateFlagRequest(
        flag=Flag(key=key, **fields),
        update_mask=FieldMask(paths=list(fields)),
        change_reason=reason,
        validate_only=dry_run,
    )
    answer = call_admin(server, lambda admin, how: admin.UpdateFlag(request, **how))
    _print_flag(answer.flag, as_json=as_json)


def _print_flag(flag: "Flag", *, as_json: bool) -> None:
    if as_json:
        print_json(document_of(flag))
        return
    lines = {
        "flag": flag.key,
        "enabled": _yes(flag.enabled),
        "rollout": f"{flag.rollout_percentage}%",
        "default": _true(flag.default_value),
        "segments": ", ".join(target.segment_key for target in flag.segment_targets),
        "description": flag.description,
        "owner": flag.owner,
        "tags": ", ".join(flag.tags),
        "revision": str(flag.revision or ""),
        "etag": flag.etag,
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name + ':':<12} {one_line(value)}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _true(value: bool) -> str:
    return str(value).lower()
